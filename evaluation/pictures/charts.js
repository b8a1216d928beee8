"use strict";
// Elements, scales, marks and the two kinds of chart that the figures are made of. Texts are always
// text nodes: nothing here, or in the other scripts, parses markup.

const SVG = "http://www.w3.org/2000/svg";
const NARROW = 560; // pixels of width below which names stand above their bars
const SHAPES = ["circle", "square", "triangle", "diamond", "cross", "wedge"];
const COLOURS = 7; // classes c0 ... c6; 7 colours and 6 shapes give 42 different marks
const FONT = "system-ui, sans-serif"; // as page.css has it
const ruler = document.createElement("canvas").getContext("2d");

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "onclick" || name === "onchange") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function words(x, y, text, attributes) {
  return svg("text", { x, y, ...attributes }, text);
}

function linear(from, to, begin, end) {
  return (value) => begin + ((value - from) / (to - from)) * (end - begin);
}

function logarithmic(from, to, begin, end) {
  return (value) => linear(Math.log(from), Math.log(to), begin, end)(Math.log(value));
}

function ticks(from, to, count) {
  // round numbers, some `count` of them
  const rough = (to - from) / Math.max(1, count),
    power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let i = Math.ceil(from / step); i * step <= to + 1e-9 * step; i++) found.push(i * step);
  return found.map((value) => Number(value.toPrecision(12)));
}

function logTicks(from, to) {
  if (to / from < 3) return ticks(from, to, 6);
  let found = [];
  for (const factors of [[1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1]]) {
    found = [];
    for (let power = -6; power <= 6; power++) found.push(...factors.map((factor) => factor * 10 ** power));
    found = found.filter((value) => value >= from * 0.999 && value <= to * 1.001);
    if (found.length <= 8) break;
  }
  return found;
}

function fixed(value, digits) {
  return value === null || value === undefined ? "-" : value.toFixed(digits);
}

function short(value) {
  // three digits
  return value === null || value === undefined ? "-" : String(Number(value.toPrecision(3)));
}

function ratio(entry) {
  // as speed.py prints it
  if (!entry || entry.value === null) return "-";
  if (entry.low === null) return `${entry.value.toFixed(3)} [-]`;
  return `${entry.value.toFixed(3)} [${entry.low.toFixed(3)}, ${entry.high.toFixed(3)}]`;
}

function widthOf(text, size = 13) {
  // pixels of a text in letters of that size
  ruler.font = `${size}px ${FONT}`;
  return ruler.measureText(text).width;
}

function cut(name, room) {
  // a name in so many pixels, without its end where it is longer
  const letters = [...name];
  if (widthOf(name) <= room) return name;
  while (letters.length && widthOf(`${letters.join("")}...`) > room) letters.pop();
  return `${letters.join("")}...`;
}

function mark(number, x, y, size, attributes) {
  // a file's own mark: colour and shape
  const shape = SHAPES[number % SHAPES.length],
    r = size;
  const path = {
    circle: `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
    square: `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    triangle: `M${x} ${y - r * 1.2}l${r * 1.2} ${r * 2.1}h${-2.4 * r}z`,
    diamond: `M${x} ${y - r * 1.3}l${r * 1.3} ${r * 1.3}l${-r * 1.3} ${r * 1.3}l${-r * 1.3} ${-r * 1.3}z`,
    cross:
      `M${x - r / 2.5} ${y - r * 1.2}h${r / 1.25}v${r * 0.8}h${r * 0.8}v${r / 1.25}h${-r * 0.8}v${r * 0.8}` +
      `h${-r / 1.25}v${-r * 0.8}h${-r * 0.8}v${-r / 1.25}h${r * 0.8}z`,
    wedge: `M${x} ${y + r * 1.2}l${r * 1.2} ${-r * 2.1}h${-2.4 * r}z`,
  }[shape];
  return svg("path", { d: path, class: `mark c${number % COLOURS}`, ...attributes });
}

function tipped(node, text) {
  // shown on hover and on focus, and read out
  node.dataset.tip = text;
  node.setAttribute("aria-label", text);
  return node;
}

function focusable(node, text) {
  node.setAttribute("tabindex", "0");
  node.setAttribute("role", "img");
  return tipped(node, text);
}

function canvas(width, height, label) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": label });
}

// Rows with a name, something drawn along a common axis, and a value. rows: {name, note, value,
// caption (a line above), tip, draw(x, y, height) -> nodes}; axis: {from, to, title, lines: [{at,
// text}]}; y is the middle of a row.
function rowChart(width, rows, axis, label) {
  const narrow = width < NARROW;
  const noteWidth = (row) => (row.note ? widthOf(row.note) + 6 : 0);
  const names = rows.map((row) => widthOf(row.name) + noteWidth(row));
  const left = narrow ? 4 : Math.min(width * 0.35, Math.max(...names, 30) + 20);
  const values = rows.map((row) => widthOf(row.value || ""));
  const right = narrow ? 12 : Math.max(...values, 14) + 14;
  const scale = linear(axis.from, axis.to, left, width - right);
  const height = narrow ? 40 : 26,
    captions = rows.filter((row) => row.caption).length;
  const top = axis.lines && axis.lines.length ? 20 : 4;
  const total = top + rows.length * height + captions * 20 + 40,
    base = total - 38;
  const chart = canvas(width, total, label);
  for (const at of ticks(axis.from, axis.to, Math.min(8, (width - left - right) / 60))) {
    chart.append(svg("line", { x1: scale(at), x2: scale(at), y1: top, y2: base, class: "grid" }));
    chart.append(words(scale(at), base + 15, short(at), { class: "tick", "text-anchor": "middle" }));
  }
  chart.append(
    words((left + width - right) / 2, base + 32, axis.title, { class: "axis", "text-anchor": "middle" }),
  );
  const labels = svg("g", { class: "labels" }); // above the lines that go through all rows
  let y = top;
  for (const row of rows) {
    if (row.caption) {
      labels.append(words(4, y + 14, row.caption, { class: "caption" }));
      y += 20;
    }
    const group = svg("g", { class: "row" }),
      middle = narrow ? y + 27 : y + height / 2;
    const room = (narrow ? width - 24 - widthOf(row.value || "") : left - 12) - noteWidth(row);
    group.append(svg("rect", { x: 0, y, width, height, class: "hit" }));
    labels.append(
      words(narrow ? 4 : left - 8, narrow ? y + 13 : middle + 4.5, cut(row.name, room), {
        class: "name",
        "text-anchor": narrow ? "start" : "end",
      }),
    );
    if (row.note) {
      const tail = svg("tspan", { class: "warn", dx: 5 }, row.note);
      labels.lastChild.append(tail);
    }
    group.append(...row.draw(scale, middle, narrow ? 14 : 16));
    labels.append(
      words(width - 4, narrow ? y + 13 : middle + 4.5, row.value || "", {
        class: "value",
        "text-anchor": "end",
      }),
    );
    if (row.tip) focusable(group, row.tip);
    chart.append(group);
    y += height;
  }
  for (const line of axis.lines || []) {
    if (line.at < axis.from || line.at > axis.to) continue;
    chart.append(
      svg("line", { x1: scale(line.at), x2: scale(line.at), y1: top - 4, y2: base, class: "reference" }),
    );
    const anchor = scale(line.at) > width * 0.6 ? "end" : "start";
    chart.append(
      words(scale(line.at) + (anchor === "end" ? -3 : 3), top - 7, line.text, {
        class: "tick",
        "text-anchor": anchor,
      }),
    );
  }
  chart.append(labels);
  return chart;
}

// A plane with two axes: {from, to, title, log}. Returns the chart and its scales.
function plane(width, height, across, up, label) {
  const left = 48,
    bottom = 42,
    top = 10,
    right = 14,
    chart = canvas(width, height, label);
  const make = (axis, begin, end) => (axis.log ? logarithmic : linear)(axis.from, axis.to, begin, end);
  const marks = (axis, room) => (axis.log ? logTicks(axis.from, axis.to) : ticks(axis.from, axis.to, room));
  const x = make(across, left, width - right),
    y = make(up, height - bottom, top);
  for (const at of marks(across, width / 80)) {
    chart.append(svg("line", { x1: x(at), x2: x(at), y1: top, y2: height - bottom, class: "grid" }));
    chart.append(words(x(at), height - bottom + 15, short(at), { class: "tick", "text-anchor": "middle" }));
  }
  for (const at of marks(up, height / 50)) {
    chart.append(svg("line", { x1: left, x2: width - right, y1: y(at), y2: y(at), class: "grid" }));
    chart.append(words(left - 6, y(at) + 4, short(at), { class: "tick", "text-anchor": "end" }));
  }
  chart.append(
    words((left + width - right) / 2, height - 6, across.title, { class: "axis", "text-anchor": "middle" }),
  );
  chart.append(
    words(13, (top + height - bottom) / 2, up.title, {
      class: "axis",
      "text-anchor": "middle",
      transform: `rotate(-90 13 ${(top + height - bottom) / 2})`,
    }),
  );
  return { chart, x, y, box: { left, right: width - right, top, bottom: height - bottom } };
}

// Names beside points where there is room: {x, y, name}; the legend has those that are left out.
function placeNames(points, box, others) {
  const taken = [...others, ...points.map((p) => [p.x - 7, p.y - 7, p.x + 7, p.y + 7])],
    nodes = [];
  for (const p of points) {
    const wide = widthOf(p.name, 12);
    for (const [dx, dy, anchor] of [
      [10, 4, "start"],
      [-10, 4, "end"],
      [0, -11, "middle"],
      [0, 19, "middle"],
      [10, 15, "start"],
      [10, -7, "start"],
      [-10, 15, "end"],
      [-10, -7, "end"],
    ]) {
      const begin = p.x + dx - (anchor === "end" ? wide : anchor === "middle" ? wide / 2 : 0);
      const spot = [begin, p.y + dy - 10, begin + wide, p.y + dy + 3];
      const free = taken.every((t) => spot[2] < t[0] || spot[0] > t[2] || spot[3] < t[1] || spot[1] > t[3]);
      if (!free || spot[0] < box.left || spot[2] > box.right || spot[1] < box.top || spot[3] > box.bottom)
        continue;
      taken.push(spot);
      nodes.push(words(p.x + dx, p.y + dy, p.name, { class: "point-name", "text-anchor": anchor }));
      break;
    }
  }
  return nodes;
}

function legend(entries) {
  // {number, name}: marks and names
  return el(
    "ul",
    { class: "legend" },
    entries.map(({ number, name }) =>
      el("li", {}, svg("svg", { width: 16, height: 16, "aria-hidden": "true" }, mark(number, 8, 8, 5)), name),
    ),
  );
}

function table(header, rows, title) {
  // numbers behind a figure
  return el(
    "details",
    { class: "numbers" },
    el("summary", {}, title || "Numbers"),
    el(
      "div",
      { class: "wide", tabindex: 0, role: "region", "aria-label": title || "Numbers" },
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            header.map((name) => el("th", { scope: "col" }, name)),
          ),
        ),
        el(
          "tbody",
          {},
          rows.map((row) =>
            el(
              "tr",
              {},
              row.map((cell, i) => (i ? el("td", {}, cell) : el("th", { scope: "row" }, cell))),
            ),
          ),
        ),
      ),
    ),
  );
}
