"use strict";
// Figures of what happened within the runs: acceptance by place, drift, load, energy. As those of figures.js they
// take what is shown and return nodes, or null where the files do not hold what they need.

const FEW = 20; // drafts or steps below which a cell of a heat map is faint
const MOST_COLUMNS = 16;
const BOUND = 1.1; // a row whose baseline moved further is marked

function heatTable(shown, files, columns, cell, title) {
  // cell: (file, column) -> [share 0..1, text, count] or null
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, title),
    columns.map((name) => el("th", { scope: "col" }, name)),
  );
  const body = files.map((number) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, nameOf(shown, number)),
      columns.map((name, i) => {
        const found = cell(number, i);
        if (!found) return el("td", { class: "none" });
        const [share, text, count] = found,
          level = Math.max(0, Math.min(9, Math.floor(share * 10)));
        return tipped(
          el("td", { class: `heat h${level}${count < FEW ? " few" : ""}` }, text),
          `${nameOf(shown, number)}, ${title} ${name}: ${text} (${count})`,
        );
      }),
    ),
  );
  return el(
    "div",
    { class: "wide", tabindex: 0, role: "region", "aria-label": title },
    el("table", { class: "heatmap" }, el("thead", {}, head), el("tbody", {}, body)),
  );
}

function counted(shown, number, kind) {
  const found = shown.group.files[number].acceptance[shown.task];
  return found ? found[kind] : [];
}

function positionFigure(shown) {
  const files = rowsOf(shown)
    .map((row) => row.file)
    .filter((number) => counted(shown, number, "position").some(([, deep]) => deep));
  if (!files.length) return null;
  const longest = Math.max(...files.map((number) => counted(shown, number, "position").length)),
    width = Math.min(longest, MOST_COLUMNS);
  const cell = (number, i) => {
    const [accepted, deep] = counted(shown, number, "position")[i] || [0, 0];
    return deep ? [accepted / deep, String(Math.round((100 * accepted) / deep)), deep] : null;
  };
  const note =
    longest > width
      ? el("p", { class: "small" }, `Positions ${width + 1} to ${longest} are left out.`)
      : null;
  return [
    heatTable(
      shown,
      files,
      Array.from({ length: width }, (_, i) => String(i + 1)),
      cell,
      "draft position",
    ),
    note,
  ];
}

function outputFigure(shown) {
  const files = rowsOf(shown)
    .map((row) => row.file)
    .filter((number) => counted(shown, number, "output").length);
  if (!files.length) return null;
  const means = files.flatMap((number) =>
    counted(shown, number, "output")
      .filter(([, steps]) => steps >= FEW)
      .map(([tokens, steps]) => tokens / steps),
  );
  const most = Math.max(1.5, ...means),
    longest = Math.max(...files.map((number) => counted(shown, number, "output").length)),
    { edges } = shown.document;
  const names = edges
    .slice(0, longest)
    .map((edge, i) => (i + 1 < edges.length ? `${edge}-${edges[i + 1] - 1}` : `${edge}-`));
  const cell = (number, i) => {
    const [tokens, steps] = counted(shown, number, "output")[i] || [0, 0];
    return steps ? [(tokens / steps - 1) / (most - 1), fixed(tokens / steps, 2), steps] : null;
  };
  return [heatTable(shown, files, names, cell, "tokens before the step")];
}

function noMovesText(shown, rows) {
  // what is said where no row has a pair that was timed twice
  const unknown = rows.filter((row) => row.drift.state !== "none");
  if (unknown.length === rows.length) return "No pairs: how far the machine moved is unknown.";
  const names = unknown.map((row) => nameOf(shown, row.file)).join(", "),
    but = names ? ` Not so of ${names}: how far the machine moved is unknown.` : "";
  return `Method and baseline were decoded together: no drift stands between them.${but}`;
}

function driftFigure(shown) {
  const rows = rowsOf(shown);
  const moves = rows
    .flatMap((row) => row.moves.map(([begin, moved]) => ({ begin, moved, row })))
    .sort((a, b) => a.begin - b.begin);
  const cells = rows.map((row) => [
    nameOf(shown, row.file),
    driftText(row.drift),
    String(row.drift.pairs),
    row.drift.parts.map((part) => fixed(part.moved, 3)).join(", "),
    [row.drift.reason, ...row.drift.named].filter(Boolean).join("; "),
  ]);
  const numbersTable = table(["method", "drift", "pairs", "moved: whole, parts", "what is known"], cells);
  if (!moves.length)
    return rows.length ? [el("p", { class: "finding" }, noMovesText(shown, rows)), numbersTable] : null;
  const wide = Math.max(1.25, ...moves.map((m) => Math.max(m.moved, 1 / m.moved))) * 1.05;
  const { chart, x, y, box } = plane(
    shown.width,
    300,
    { from: 0, to: moves.length + 1, title: "pairs in the order of their time" },
    { from: 1 / wide, to: wide, title: "baseline's speed / that in its file", log: true },
    "Drift over the run",
  );
  chart.append(
    svg("rect", {
      x: box.left,
      width: box.right - box.left,
      y: y(BOUND),
      height: y(1 / BOUND) - y(BOUND),
      class: "band",
    }),
  );
  chart.append(svg("line", { x1: box.left, x2: box.right, y1: y(1), y2: y(1), class: "reference" }));
  moves.forEach(({ begin, moved, row }, i) => {
    chart.append(
      tipped(
        mark(row.file, x(i + 1), y(moved), 4.5),
        `${nameOf(shown, row.file)}: ${moved.toFixed(3)}x at ${new Date(1000 * begin).toISOString().slice(0, 19)} UTC`,
      ),
    );
  });
  return [
    chart,
    legend(
      rows
        .filter((row) => row.moves.length)
        .map((row) => ({ number: row.file, name: nameOf(shown, row.file) })),
    ),
    numbersTable,
  ];
}

const LATENCIES = ["ttft", "tpot", "itl", "e2e", "queue"];

function loadFigure(shown) {
  const { load } = shown.document,
    name = shown.latency;
  if (!load) return null;
  const points = load.series.flatMap((one, number) => one.points.map((point) => ({ ...point, number }))),
    cells = points.map((point) => [
      point.label,
      short(point.rate),
      `${point.requests - point.failed} of ${point.requests}`,
      ...["p50", "p90", "p99"].map((p) => short(point[name] && point[name][p])),
      short(point.token_throughput),
      point.good === null ? "-" : `${fixed(100 * point.good, 1)} %`,
      fixed(point.accepted, 2),
    ]);
  const listed = table(
    ["run", "rate", "answered", `${name} p50 (s)`, "p90", "p99", "tokens/s", "good", "accepted/step"],
    cells,
  );
  const known = points.filter(
    (point) => point.rate && Number.isFinite(point.rate) && point[name] && point[name].p50 > 0,
  );
  if (!known.length) return [el("p", { class: "finding" }, `No load run with a rate holds ${name}.`), listed];
  const rates = known.map((point) => point.rate),
    times = known.flatMap((point) => [point[name].p50, point[name].p99]);
  const across = {
    from: 0.8 * Math.min(...rates),
    to: 1.2 * Math.max(...rates),
    title: "requests a second",
    log: true,
  };
  const up = {
    from: 0.7 * Math.min(...times),
    to: 1.4 * Math.max(...times),
    title: `${name}, seconds`,
    log: true,
  };
  const { chart, x, y } = plane(shown.width, 340, across, up, `${name} against the rate`);
  load.series.forEach((one, number) => {
    for (const [percent, look] of [
      ["p50", "line"],
      ["p99", "line dashed"],
    ]) {
      const path = known
        .filter((point) => point.number === number)
        .map((point) => [x(point.rate), y(point[name][percent])]);
      if (path.length > 1)
        chart.append(
          svg("polyline", {
            points: path.map((spot) => spot.join(",")).join(" "),
            class: `${look} c${number % COLOURS}`,
          }),
        );
      path.forEach(([px, py], i) => {
        const point = known.filter((p) => p.number === number)[i];
        chart.append(
          focusable(
            mark(number, px, py, 5, percent === "p99" ? { class: `mark hollow c${number % COLOURS}` } : {}),
            `${point.label} at ${short(point.rate)} a second: ${name} ${percent} ${short(point[name][percent])} s`,
          ),
        );
      });
    }
  });
  const bounds = load.slo
    ? `Good requests: ${Object.entries(load.slo)
        .map(([bound, s]) => `${bound} at most ${s} s`)
        .join(", ")}. `
    : "";
  const knees = load.knees.map((knee) => el("p", { class: "finding" }, `${knee.label}: ${knee.text}`));
  return [
    chart,
    legend(load.series.map((one, number) => ({ number, name: one.label }))),
    bounds ? el("p", { class: "small" }, bounds) : null,
    ...knees,
    listed,
  ];
}

function energyFigure(shown) {
  const rows = withBase(shown).filter((row) => numbers(shown, row).joules !== null);
  if (!rows.length) return null;
  const drawn = rows.map((row) => {
    const { joules, energy, speedup } = numbers(shown, row),
      name = nameOf(shown, row.file);
    return {
      name,
      value: `${short(joules)} J`,
      tip: `${name}: ${short(joules)} joules a token, ${ratio(energy)} of the baseline's, at a speedup of ${ratio(speedup)}`,
      draw: (x, y, h) => [
        svg("rect", { x: x(0), y: y - h / 2, width: x(joules) - x(0), height: h, class: "bar" }),
      ],
    };
  });
  const most = Math.max(...rows.map((row) => numbers(shown, row).joules));
  const chart = rowChart(
    shown.width,
    drawn,
    { from: 0, to: 1.05 * most || 1, title: "joules a token" },
    "Joules a token",
  );
  const cells = rows.map((row) => [
    nameOf(shown, row.file),
    short(numbers(shown, row).joules),
    ratio(numbers(shown, row).energy),
    ratio(numbers(shown, row).speedup),
  ]);
  return [chart, table(["method", "joules/token", "energy (total ratio)", "speedup (mean ratio)"], cells)];
}
