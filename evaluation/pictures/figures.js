"use strict";
// The figures: each takes what is shown (`shown`: group, view, task, width, per) and returns the
// nodes below its heading, or null where the files do not hold what it needs.

const PHASES = ["draft", "verify", "commit", "rest", "step"];
const PHASE_WORDS = { step: "whole step (no phases recorded)" };

function nameOf(shown, number) {
  return shown.group.files[number].name;
}

function rowsOf(shown) {
  // rows with the chosen task, in the order of their places
  const by = new Map(shown.view.rows.map((row) => [row.file, row]));
  return (shown.view.ranked[shown.task] || []).flat().map((number) => by.get(number));
}

function withBase(shown) {
  const base = shown.view.base;
  return [...(base && base.tasks[shown.task] ? [base] : []), ...rowsOf(shown)];
}

function numbers(shown, row) {
  return row.tasks[shown.task];
}

function driftText(drift) {
  // as speed.py's table
  if (drift.state !== "measured" && !drift.marked) return drift.state;
  const worst = drift.parts
    .map((part) => part.moved)
    .reduce((a, b) => (Math.abs(Math.log(a)) >= Math.abs(Math.log(b)) ? a : b));
  return `${worst.toFixed(2)}x${drift.marked ? " MOVED" : ""}`;
}

function speedupFigure(shown) {
  const rows = rowsOf(shown);
  if (!rows.length) return null;
  const entries = rows.map((row) => numbers(shown, row).speedup),
    values = entries.map((e) => e.value || 0),
    others = rows.flatMap((row) => publishedOf(shown, row.file));
  const reach = Math.max(...values, ...others),
    end = 1.05 * Math.max(1.2, reach, ...entries.map((e) => Math.min(e.high || 0, 1.8 * reach)));
  const drawn = [];
  let place = 1;
  for (const members of shown.view.ranked[shown.task]) {
    members.forEach((number, i) => {
      const row = rows.find((one) => one.file === number),
        entry = numbers(shown, row).speedup;
      const last = place + members.length - 1;
      drawn.push({
        name: nameOf(shown, number),
        note: row.drift.marked ? "moved!" : "",
        value: ratio(entry),
        caption: i
          ? null
          : members.length > 1
            ? `places ${place} to ${last}: not distinguishable from the first`
            : `place ${place}`,
        tip: rowTip(shown, row),
        draw: (x, y, h) => [
          ...speedupBar(x, y, h, entry, end, shown.group.files[number].lossy),
          ...publishedOf(shown, number).map((value) =>
            svg("path", { d: `M${x(value)} ${y - h / 2 - 2}v${h + 4}`, class: "published" }),
          ),
        ],
      });
    });
    place += members.length;
  }
  const axis = { from: 0, to: end, title: "speedup (mean ratio of tokens/s)" };
  axis.lines = [{ at: 1, text: shown.baseName }];
  const chart = rowChart(shown.width, drawn, axis, "Speedup by method");
  const cells = rows.map((row) => [
    nameOf(shown, row.file),
    String(numbers(shown, row).questions),
    fixed(numbers(shown, row).tokens_per_s, 1),
    fixed(numbers(shown, row).base_tokens_per_s, 1),
    ratio(numbers(shown, row).speedup),
    ratio(numbers(shown, row).decode),
    fixed(numbers(shown, row).accepted, 3),
    driftText(row.drift),
    row.notes.join("; "),
  ]);
  const { source } = shown,
    said =
      source &&
      `Grey lines: published, not recomputable: ${source.title} (${source.source}). ${source.counted}.`;
  return [
    chart,
    source ? el("p", { class: "small", id: "published" }, said) : null,
    table(
      [
        "method",
        "questions",
        "tokens/s",
        "baseline",
        "speedup (mean ratio)",
        "decode (mean ratio)",
        "accepted/step",
        "drift",
        "notes",
      ],
      cells,
    ),
  ];
}

function publishedOf(shown, number) {
  // what others published of a file's method in this category
  if (!shown.source) return [];
  const { method } = shown.group.files[number],
    [, name] = shown.view.tasks.find(([task]) => task === shown.task);
  return shown.source.rows
    .filter((one) => one.method === method && name in one.speedup)
    .map((one) => one.speedup[name]);
}

function speedupBar(x, y, h, entry, end, lossy) {
  const nodes = [
    svg("rect", {
      x: x(0),
      y: y - h / 2,
      width: Math.max(0, x(Math.min(entry.value || 0, end)) - x(0)),
      height: h,
      class: lossy ? "bar lossy" : "bar",
    }),
  ];
  if (entry.low !== null && entry.value !== null) {
    const low = x(Math.max(0, entry.low)),
      high = x(Math.min(entry.high, end));
    nodes.push(
      svg("path", {
        d: `M${low} ${y}H${high}M${low} ${y - 5}v10${entry.high <= end ? `M${high} ${y - 5}v10` : `M${high - 6} ${y - 5}l6 5l-6 5`}`,
        class: "whisker",
      }),
    );
  }
  return nodes;
}

function rowTip(shown, row) {
  const one = numbers(shown, row);
  return (
    `${nameOf(shown, row.file)}: speedup ${ratio(one.speedup)}, ${fixed(one.tokens_per_s, 1)} tokens/s on ${one.questions} questions,` +
    ` ${fixed(one.accepted, 2)} tokens a step, drift ${driftText(row.drift)}${row.notes.length ? `; ${row.notes.join("; ")}` : ""}`
  );
}

function priceFigure(shown) {
  const points = rowsOf(shown)
    .map((row) => ({ row, ...numbers(shown, row).profile }))
    .filter((p) => p.break_even && p.accepted);
  if (!points.length) return null;
  const costs = points.flatMap((p) => [p.break_even, p.price || p.break_even]),
    gains = points.map((p) => p.accepted);
  const across = {
    from: 0.85 * Math.min(1, ...costs),
    to: 1.25 * Math.max(1.5, ...costs),
    title: "cost of a step, in steps of the baseline",
    log: true,
  };
  const up = {
    from: 0.9,
    to: 1.2 * Math.max(2, ...gains),
    title: "tokens a step (accept length)",
    log: true,
  };
  const { chart, x, y, box } = plane(
    shown.width,
    Math.max(320, Math.min(520, shown.width * 0.62)),
    across,
    up,
    "Accepted tokens against the cost of a step",
  );
  for (const speedup of [0.125, 0.25, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8]) {
    const begin = Math.max(across.from, up.from / speedup),
      end = Math.min(across.to, up.to / speedup);
    if (end <= begin * 1.08) continue;
    chart.append(
      svg("line", {
        x1: x(begin),
        y1: y(begin * speedup),
        x2: x(end),
        y2: y(end * speedup),
        class: speedup === 1 ? "reference" : "equal",
      }),
    );
    const edge = end === across.to;
    chart.append(
      words(x(end) + (edge ? -4 : -2), y(end * speedup) + (edge ? -4 : 12), `${speedup}x`, {
        class: "tick",
        "text-anchor": "end",
      }),
    );
  }
  const tails = [],
    spots = [{ x: x(1), y: y(1), name: shown.baseName }];
  chart.append(svg("circle", { cx: x(1), cy: y(1), r: 4, class: "origin" }));
  for (const p of points) {
    const number = p.row.file,
      at = { x: x(p.break_even), y: y(p.accepted) };
    const group = focusable(
      svg("g", { class: "point" }),
      `${nameOf(shown, number)}: ${fixed(p.accepted, 2)} tokens a step that costs ${fixed(p.break_even, 2)} of the` +
        ` baseline's: decode speedup ${fixed(p.accepted / p.break_even, 2)} (totals); price of verification ${fixed(p.price, 2)} with ${fixed(p.rows, 0)} rows`,
    );
    if (p.price) {
      group.append(
        svg("line", { x1: x(p.price), x2: at.x, y1: at.y, y2: at.y, class: `tail c${number % COLOURS}` }),
      );
      group.append(mark(number, x(p.price), at.y, 3.5, { class: `mark hollow c${number % COLOURS}` }));
      tails.push([Math.min(x(p.price), at.x) - 4, at.y - 4, Math.max(x(p.price), at.x), at.y + 4]);
    }
    group.append(mark(number, at.x, at.y, 6));
    chart.append(group);
    spots.push({ ...at, name: nameOf(shown, number) });
  }
  chart.append(...placeNames(spots, box, tails));
  const cells = points.map((p) => [
    nameOf(shown, p.row.file),
    fixed(p.accepted, 3),
    fixed(p.rows, 0),
    fixed(p.verify_ms, 3),
    fixed(p.price, 2),
    fixed(p.break_even, 2),
    fixed(p.accepted / p.break_even, 3),
  ]);
  return [
    chart,
    legend(points.map((p) => ({ number: p.row.file, name: nameOf(shown, p.row.file) }))),
    table(
      ["method", "accepted", "rows", "verify ms", "price", "break-even", "decode speedup (totals)"],
      cells,
    ),
  ];
}

function phaseFigure(shown) {
  const rows = withBase(shown).filter((row) => numbers(shown, row).identity);
  if (!rows.length) return null;
  const parts = (row) => {
    const identity = numbers(shown, row).identity,
      by = shown.per === "token" ? identity.tokens_per_step : 1;
    return PHASES.filter((phase) => phase in identity.parts_ms).map((phase) => [
      phase,
      identity.parts_ms[phase] / by,
    ]);
  };
  const total = (row) => parts(row).reduce((sum, [, ms]) => sum + ms, 0);
  const unit = `ms a ${shown.per}`;
  const drawn = rows.map((row) => ({
    name: nameOf(shown, row.file),
    value: fixed(total(row), 2),
    tip: `${nameOf(shown, row.file)}: ${parts(row)
      .map(([phase, ms]) => `${phase} ${fixed(ms, 3)}`)
      .join(", ")} ${unit}`,
    draw: (x, y, h) => {
      let begin = 0;
      return parts(row).map(([phase, ms]) => {
        const from = x(begin),
          to = x((begin += Math.max(0, ms)));
        return svg("rect", {
          x: from,
          y: y - h / 2,
          width: Math.max(0, to - from - 1),
          height: h,
          class: `phase ${phase}`,
        });
      });
    },
  }));
  const chart = rowChart(
    shown.width,
    drawn,
    { from: 0, to: 1.02 * Math.max(...rows.map(total)), title: unit },
    "Time of a step by phase",
  );
  const used = PHASES.filter((phase) => rows.some((row) => phase in numbers(shown, row).identity.parts_ms));
  const keys = el(
    "ul",
    { class: "legend" },
    used.map((phase) =>
      el(
        "li",
        {},
        svg(
          "svg",
          { width: 16, height: 12, "aria-hidden": "true" },
          svg("rect", { width: 16, height: 12, class: `phase ${phase}` }),
        ),
        PHASE_WORDS[phase] || phase,
      ),
    ),
  );
  const cells = rows.map((row) => [
    nameOf(shown, row.file),
    ...used.map((phase) => fixed((parts(row).find(([name]) => name === phase) || [])[1], 3)),
    fixed(total(row), 3),
  ]);
  return [keys, chart, table(["method", ...used, unit], cells)];
}

function boundFigure(shown) {
  // a row's bound is that of its baseline's step: one for all, or that of its own pairs
  const rows = withBase(shown).filter((row) => numbers(shown, row).identity),
    { base } = shown.view;
  if (!rows.length) return null;
  const cost = (row) => {
    const identity = numbers(shown, row).identity;
    return Object.values(identity.parts_ms).reduce((a, b) => a + b, 0) / identity.tokens_per_step;
  };
  const bound = (row) => (base || row).roofline.bound_ms,
    common = base && bound(base);
  const times = (row) => (bound(row) ? ` = ${fixed(cost(row) / bound(row), 1)} bounds` : "");
  const drawn = rows.map((row) => ({
    name: nameOf(shown, row.file),
    value: fixed(cost(row), 2) + times(row),
    draw: (x, y, h) => [
      svg("rect", {
        x: x(0),
        y: y - h / 2,
        width: Math.max(0, x(cost(row)) - x(0)),
        height: h,
        class: "bar",
      }),
      ...(!base && bound(row)
        ? [svg("path", { d: `M${x(bound(row))} ${y - h / 2 - 2}v${h + 4}`, class: "bound" })]
        : []),
    ],
    tip:
      `${nameOf(shown, row.file)}: ${fixed(cost(row), 3)} ms a token` +
      (bound(row) ? `${times(row)} of ${fixed(bound(row), 3)} ms` : ""),
  }));
  const axis = {
    from: 0,
    to: 1.05 * Math.max(...rows.flatMap((row) => [cost(row), bound(row) || 0])),
    title: "ms a token, prefill left out",
    lines: common ? [{ at: common, text: "bound" }] : [],
  };
  const chart = rowChart(shown.width, drawn, axis, "Time a token against the bound");
  const text = base ? boundText(shown.baseName, base.roofline) : ownBoundsText(shown, rows);
  return [el("p", { class: "finding" }, text), chart, base ? null : boundTable(shown, rows, cost)];
}

function boundText(name, bound) {
  if (bound.share === null) return `${name}: ${bound.no_bound}`;
  return (
    `${name}: step ${fixed(bound.step_ms, 3)} ms, bound ${fixed(bound.bound_ms, 3)} ms: it runs at ${fixed(100 * bound.share, 1)} % of its bound` +
    (bound.label ? ` (${bound.label}: a draft's rows seem cheap)` : "")
  );
}

function ownBoundsText(shown, rows) {
  // the range over each row's own pairs; rows without a bound say why
  const known = rows.filter((row) => row.roofline.share !== null),
    without = rows.filter((row) => row.roofline.share === null),
    labelled = known.filter((row) => row.roofline.label);
  const range = (value, digits) => {
    const texts = [Math.min(...known.map(value)), Math.max(...known.map(value))].map((v) => fixed(v, digits));
    return texts[0] === texts[1] ? texts[0] : texts.join(" to ");
  };
  const found = without.map((row) => `${nameOf(shown, row.file)}: ${row.roofline.no_bound}`);
  if (known.length)
    found.unshift(
      `${shown.baseName}: steps of ${range((row) => row.roofline.step_ms, 3)} ms, bounds (ticks) of ${range((row) => row.roofline.bound_ms, 3)} ms:` +
        ` they run at ${range((row) => 100 * row.roofline.share, 1)} % of their bounds` +
        (labelled.length
          ? ` (${labelled.length} of ${known.length} launch-bound: a draft's rows seem cheap)`
          : ""),
    );
  return found.join("; ");
}

function boundTable(shown, rows, cost) {
  const cells = rows.map((row) => {
    const { step_ms, bound_ms, share, label } = row.roofline;
    return [
      nameOf(shown, row.file),
      fixed(cost(row), 3),
      fixed(step_ms, 3),
      fixed(bound_ms, 3),
      share === null ? "-" : `${fixed(100 * share, 1)} %${label ? ` ${label}` : ""}`,
      bound_ms ? fixed(cost(row) / bound_ms, 2) : "-",
    ];
  });
  return table(
    ["method", "ms a token", "baseline's step ms", "bound ms", "of its bound", "bounds a token"],
    cells,
  );
}
