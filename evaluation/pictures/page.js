"use strict";
// What is shown: the group of files, its baseline and the category, chosen by menus; all figures are
// drawn anew when one changes, out of numbers that speed.py's code computed.

const FIGURES = [
  [
    "speedup",
    "Speedup by method",
    "Bars with 95 % intervals (bootstrap over questions, widened by the drift). Methods are not distinguishable where the" +
      " interval of the first of them against the other holds 1 (of their speedups' ratio, where each has its own pairs). An outlined bar's acceptance rule may change the output (lossy).",
    speedupFigure,
  ],
  [
    "price",
    "Accepted tokens against price of verification",
    "Why a method is fast or slow. Filled: tokens a step against what the whole step costs (the break-even)," +
      " so that lines of equal decode speedup are exact. Hollow: the price of verification alone; the line between is drafting and the rest.",
    priceFigure,
  ],
  [
    "bound",
    "Distance to the roofline",
    "Time a token beside the least time of the baseline's step, of all questions: bytes of weights and KV over the measured read bandwidth." +
      " No faster runtime gets a baseline below one bound; drafting can.",
    boundFigure,
  ],
  [
    "phases",
    "Time of a step",
    "Draft: proposing and observing; verify: the target's forward; commit: acceptance and cache; rest: what is left of the wall time.",
    phaseFigure,
  ],
  [
    "position",
    "Acceptance by draft position",
    "Per cent of the drafts that deep whose token at that position was accepted; a turn's last step is left out. Faint: few drafts.",
    positionFigure,
  ],
  [
    "output",
    "Accepted tokens along the answer",
    "Mean tokens a step, by how many tokens of the turn stood before it. Faint: few steps.",
    outputFigure,
  ],
  [
    "drift",
    "Drift over the run",
    "The baseline decoded beside a method's answers, as a multiple of its speed in its own file. Beyond the band (10 %) a row is marked.",
    driftFigure,
  ],
  [
    "load",
    "Under load",
    "Latencies of load runs against the rate of arrivals: filled and solid p50, hollow and dashed p99. Counted from the scheduled arrival on, as serving.py does.",
    loadFigure,
  ],
  [
    "energy",
    "Energy",
    "Joules of the metered devices over the new tokens, idle power included. The ratio is the method's over the baseline's, with its interval.",
    energyFigure,
  ],
  [
    "verdicts",
    "Verdicts",
    "Whether answers are the baseline's, token by token; each difference opens in the viewer.",
    verdictFigure,
  ],
];

const page = {
  document: JSON.parse(document.getElementById("data").textContent),
  answers: JSON.parse(document.getElementById("answers").textContent),
  chosen: { group: 0, baseline: null, task: "overall", per: "step", latency: "ttft", published: "" },
  places: new Map(),
};

function shownNow() {
  // everything that figures ask for
  const { chosen } = page,
    group = page.document.groups[chosen.group],
    view = group.views[chosen.baseline] || { rows: [], base: null, tasks: [], ranked: {}, not_compared: [] };
  const baseName =
    chosen.baseline === null
      ? "no baseline"
      : chosen.baseline === "paired"
        ? "baseline (own pairs)"
        : group.files[chosen.baseline].name;
  const width = Math.max(280, Math.min(1080, document.getElementById("figures").clientWidth - 2));
  return {
    document: page.document,
    group,
    view,
    baseName,
    width,
    number: chosen.group,
    task: chosen.task,
    per: chosen.per,
    latency: chosen.latency,
    source: (page.document.published || [])[chosen.published || -1],
    answers: page.answers[chosen.group] || [],
  };
}

function settingText(name, value) {
  // "" where there is nothing worth a word
  if (value === null || value === undefined || (name === "top_p" && value === 1)) return "";
  const words_ = {
    scale_to: "its twin at V",
    temperature: "temperature V",
    top_p: "top-p V",
    batch_size: "batch V",
    max_new_tokens: "V tokens at most",
    num_threads: "threads V",
    questions: "V questions",
  };
  return (words_[name] || "V").replace("V", String(value));
}

function chooseGroup(name, value) {
  // the group with that setting that agrees with most of the others
  const { groups } = page.document,
    now = groups[page.chosen.group].settings;
  const agreeing = (settings) =>
    Object.keys(now).filter((key) => key !== name && settings[key] === now[key]).length;
  const fitting = groups
    .map((group, i) => [i, group.settings])
    .filter(([, settings]) => String(settings[name]) === value);
  setGroup(fitting.reduce((best, one) => (agreeing(one[1]) > agreeing(best[1]) ? one : best))[0]);
}

function setGroup(number) {
  const { chosen } = page,
    group = page.document.groups[number];
  chosen.group = number;
  chosen.baseline = group.baselines.length ? group.baselines[0] : null;
}

function menu(label, name, options, chosen, change) {
  // options: [[value, text]]
  return el(
    "label",
    {},
    el("span", {}, label),
    el(
      "select",
      {
        name,
        onchange: (event) => {
          change(event.target.value);
          draw();
        },
      },
      options.map(([value, text]) => el("option", { value, selected: value === chosen }, text)),
    ),
  );
}

function drawFilters(shown) {
  const { groups } = page.document,
    { chosen } = page,
    form = document.getElementById("filters"),
    menus = [];
  const active = document.activeElement && document.activeElement.name;
  for (const name of Object.keys(shown.group.settings)) {
    const values = [...new Set(groups.map((group) => String(group.settings[name])))];
    if (values.length > 1)
      menus.push(
        menu(
          name.replace("_name", "").replaceAll("_", " "),
          name,
          values.map((v) => [v, v]),
          String(shown.group.settings[name]),
          (v) => chooseGroup(name, v),
        ),
      );
  }
  const bases = shown.group.baselines.map((number) => [
    number,
    number === "paired" ? "each method's own pairs" : shown.group.files[number].name,
  ]);
  menus.push(
    menu("baseline", "baseline", bases.length ? bases : [["", "none in the files"]], chosen.baseline, (v) => {
      chosen.baseline = v || null;
    }),
  );
  menus.push(
    menu(
      "category",
      "task",
      shown.view.tasks.length ? [...shown.view.tasks].reverse() : [["overall", "Overall"]],
      chosen.task,
      (v) => {
        chosen.task = v;
      },
    ),
  );
  menus.push(
    menu(
      "times",
      "per",
      [
        ["step", "a step"],
        ["token", "a token"],
      ],
      chosen.per,
      (v) => {
        chosen.per = v;
      },
    ),
  );
  const sources = page.document.published || [];
  if (sources.length) {
    const options = [["", "none"], ...sources.map((one, i) => [String(i), one.title])];
    menus.push(menu("published", "published", options, chosen.published, (v) => (chosen.published = v)));
  }
  if (page.document.load)
    menus.push(
      menu(
        "latency",
        "latency",
        LATENCIES.map((name) => [name, name]),
        chosen.latency,
        (v) => {
          chosen.latency = v;
        },
      ),
    );
  form.replaceChildren(...menus);
  const again = active && form.elements[active];
  if (again) again.focus();
}

function factsText(shown) {
  const settings = Object.entries(shown.group.settings).map(([name, value]) => settingText(name, value));
  return settings.filter(Boolean).join(" | ");
}

function drawFooter(shown) {
  const files = shown.group.files.map((file) => [
    file.name,
    file.file,
    file.sha256,
    file.runtime_ran || file.runtime || "-",
    file.commit || "-",
    file.started || "-",
    `${file.questions - file.failed} of ${file.questions}`,
  ]);
  const left = shown.view.not_compared.map((one) =>
    el("p", { class: "warn small" }, `${nameOf(shown, one.file)} is not compared: ${one.reason}`),
  );
  const { resamples, seed } = page.document.bootstrap,
    viewer = shown.group.viewer;
  const thinned =
    viewer && viewer.questions < viewer.of
      ? `The viewer has ${viewer.questions} of ${viewer.of} questions, those that differ first: the page is kept small. evaluation/show.py shows every answer.`
      : null;
  document
    .getElementById("footer")
    .replaceChildren(
      ...left,
      table(["name", "file", "sha256", "runtime", "commit", "started", "answered"], files, "Files"),
      ...(thinned ? [el("p", { class: "small", id: "thinned" }, thinned)] : []),
      el(
        "p",
        { class: "small" },
        `Recomputable: evaluation/speed.py and equal.py print these numbers from the same files (${resamples} resamples, seed ${seed}).`,
      ),
    );
}

function draw() {
  const { chosen } = page;
  let shown = shownNow();
  if (!shown.view.tasks.some(([task]) => task === chosen.task)) chosen.task = "overall";
  shown = shownNow();
  drawFilters(shown);
  document.getElementById("facts").textContent = factsText(shown);
  const contents = [];
  for (const [id, title, explained, figure] of FIGURES) {
    const place = page.places.get(id),
      nodes = figure(shown);
    place.hidden = !nodes;
    if (!nodes) continue;
    contents.push([id, title]);
    place.replaceChildren(
      el("h2", {}, title),
      el("p", { class: "explained" }, explained),
      ...nodes.filter(Boolean),
    );
  }
  contents.push(["answers-view", "Answers"]);
  document
    .getElementById("contents")
    .replaceChildren(...contents.map(([id, title]) => el("a", { href: `#${id}` }, title)));
  page.viewer.open(shown, null);
  drawFooter(shown);
  page.width = shown.width;
}

function follow() {
  // a link into the viewer
  const query = location.hash.startsWith("#answers?") ? new URLSearchParams(location.hash.slice(9)) : null;
  if (!query) return;
  let q = null;
  try {
    q = JSON.parse(query.get("q"));
  } catch (error) {
    return;
  }
  const group = Number(query.get("g"));
  if (!page.document.groups[group]) return;
  if (group !== page.chosen.group) {
    setGroup(group);
    draw();
  }
  const at = query.get("at");
  page.viewer.open(shownNow(), {
    q,
    a: Number(query.get("a")),
    b: Number(query.get("b")),
    at: at && at.split(".").map(Number),
  });
  document.getElementById("answers-view").scrollIntoView();
}

function showTip(event) {
  const tip = document.getElementById("tip"),
    node = event.target.closest && event.target.closest("[data-tip]");
  if (!node || event.type === "mouseout" || event.type === "focusout") {
    tip.hidden = true;
    return;
  }
  tip.textContent = node.dataset.tip;
  tip.hidden = false;
  const box = node.getBoundingClientRect(),
    own = tip.getBoundingClientRect();
  const below = box.bottom + 6 + own.height < innerHeight,
    wide = document.documentElement.clientWidth;
  tip.style.left = `${Math.max(4, Math.min(box.left, wide - own.width - 4))}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(4, box.top - own.height - 6)}px`;
}

function start() {
  const main = document.getElementById("figures");
  document.getElementById("title").textContent = document.title;
  main.replaceChildren();
  for (const [id] of FIGURES) {
    page.places.set(id, el("section", { id, class: "figure" }));
    main.append(page.places.get(id));
  }
  const place = el("div", { id: "answers" });
  main.append(el("section", { id: "answers-view", class: "figure" }, el("h2", {}, "Answers"), place));
  page.viewer = new Viewer(place);
  setGroup(0);
  draw();
  for (const name of ["mouseover", "mouseout", "focusin", "focusout"])
    document.addEventListener(name, showTip);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.getElementById("tip").hidden = true;
  });
  addEventListener("hashchange", follow);
  addEventListener("resize", () => {
    if (shownNow().width !== page.width) draw();
  });
  follow();
}

start();
