"use strict";
// Verdicts with what both answers say from the first differing token on, and the answer viewer:
// one question's answers of two methods, a step's tokens shaded by how many it committed.

const SHADES = 6; // s1 ... s6: tokens that a step committed, the last for all above
const KINDS = {
  missing: "missing in this file",
  extra: "not in the baseline",
  choices: "another number of choices",
  turns: "another number of turns",
};

async function unpack(text) {
  // base64 of raw deflate of JSON
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(stream).json();
}

function viewerLink(state) {
  // {g, q, a, b, at: [choice, turn, position]}
  const query = new URLSearchParams({ g: state.g, q: JSON.stringify(state.q), a: state.a, b: state.b });
  if (state.at) query.set("at", state.at.join("."));
  return `#answers?${query}`;
}

function verdictWords(file, verdict) {
  if (verdict.refused) return `not compared: ${verdict.refused}`;
  const own = verdict.equal ? "equal" : `${verdict.differing} of ${verdict.questions} differ`;
  return file.verdict ? `${file.verdict} (${own})` : own;
}

function verdictFigure(shown) {
  const rows = rowsOf(shown).filter((row) => row.verdict);
  if (!rows.length) return null;
  const listed = new Set(shown.answers.map(([id]) => id)),
    together = new Map(); // methods of which nothing more is to be said, by their verdict
  const others = rows.filter((row) => {
    const { verdict } = row,
      words_ = verdictWords(shown.group.files[row.file], verdict);
    if (verdict.refused || !verdict.equal || verdict.notes.length) return true;
    together.set(words_, [...(together.get(words_) || []), nameOf(shown, row.file)]);
    return false;
  });
  const lines = [...together].map(([words_, names]) =>
    el("p", { class: "verdict" }, el("span", { class: "good" }, `= ${words_}: `), names.join(", ")),
  );
  return [...lines, ...others.map((row) => verdictEntry(shown, row, listed))];
}

function verdictEntry(shown, row, listed) {
  const file = shown.group.files[row.file],
    { verdict } = row;
  const good = verdict.equal || /^(EXACT|TIES ONLY|CONSISTENT)/.test(file.verdict || "");
  const line = [
    el("strong", {}, nameOf(shown, row.file)),
    " ",
    el("span", { class: good ? "good" : "warn" }, `${verdict.equal ? "=" : "≠"} ${verdictWords(file, verdict)}`),
  ];
  const notes = (verdict.notes || []).map((note) => el("p", { class: "small" }, note));
  if (verdict.refused || !verdict.differences.length)
    return el("div", { class: "verdict" }, el("p", {}, ...line), notes);
  const items = verdict.differences.map((one) => differenceItem(shown, row.file, one, listed));
  if (verdict.more) items.push(el("li", {}, `and ${verdict.more} more: equal.py lists them`));
  const list = el("ul", { class: "differences" }, items);
  return el("details", { class: "verdict" }, el("summary", {}, ...line), notes, list);
}

function differenceItem(shown, number, one, listed) {
  const where = `question ${one.question_id} (${one.category})`;
  if (one.kind in KINDS) return el("li", {}, `${where}: ${KINDS[one.kind]}`);
  if (one.kind === "error") return el("li", {}, `${where}: failed on one side: ${one.base || one.other}`);
  const unit = one.kind === "tokens" ? "token" : "character",
    text = `${where}, turn ${one.turn}, ${unit} ${one.position}`;
  const base = shown.view.base ? shown.view.base.file : number;
  const at = [one.choice, one.turn, one.kind === "tokens" ? one.position : -1];
  const link = listed.has(one.question_id)
    ? el("a", { href: viewerLink({ g: shown.number, q: one.question_id, a: base, b: number, at }) }, text)
    : text;
  const says = (name, there, continuation) =>
    el(
      "p",
      { class: "says" },
      el("span", { class: "who" }, `${name}: `),
      one.before,
      el("mark", {}, continuation || "(end)"),
      one.kind === "tokens"
        ? el("span", { class: "small" }, ` token ${there === null ? "none" : there}`)
        : null,
    );
  const same = one.base_text === one.other_text;
  return el(
    "li",
    {},
    link,
    same ? el("p", { class: "says" }, "The same text, of other tokens.") : null,
    same ? null : says(shown.baseName, one.base, one.base_text),
    same ? null : says(nameOf(shown, number), one.other, one.other_text),
  );
}

// The viewer keeps {q: place in shown.answers, a, b: files' numbers, at} between redraws.
class Viewer {
  constructor(place) {
    this.place = place;
    this.state = { q: 0, a: 0, b: 0, at: null };
    this.drawn = 0;
  }

  open(shown, wanted) {
    // shows a group's answers; wanted: what a link asks for
    const fresh = this.group !== shown.number;
    this.shown = shown;
    this.group = shown.number;
    const rows = rowsOf(shown),
      base = shown.view.base;
    if (fresh || wanted)
      this.state = { q: 0, a: rows.length ? rows[0].file : 0, b: base ? base.file : 0, at: null };
    if (wanted) {
      const found = shown.answers.findIndex(([id]) => id === wanted.q),
        valid = (i) => i >= 0 && i < shown.group.files.length;
      this.state = {
        q: Math.max(0, found),
        a: valid(wanted.a) ? wanted.a : 0,
        b: valid(wanted.b) ? wanted.b : 0,
        at: wanted.at,
      };
    }
    this.draw();
  }

  move(change) {
    Object.assign(this.state, { at: null }, change);
    this.draw();
  }

  controls() {
    const { answers, group } = this.shown,
      { q, a, b } = this.state;
    const select = (label, options, chosen, name) =>
      el(
        "label",
        {},
        `${label} `,
        el(
          "select",
          { name, onchange: (event) => this.move({ [name]: Number(event.target.value) }) },
          options.map((text, i) => el("option", { value: i, selected: i === chosen }, text)),
        ),
      );
    const step = (text, title, by) =>
      el(
        "button",
        {
          type: "button",
          "aria-label": title,
          disabled: q + by < 0 || q + by >= answers.length,
          onclick: () => this.move({ q: q + by }),
        },
        text,
      );
    const names = group.files.map((file) => file.name);
    return el(
      "div",
      { class: "controls" },
      select(
        "question",
        answers.map(([id, category]) => `${id} (${category})`),
        q,
        "q",
      ),
      step("‹", "previous question", -1),
      step("›", "next question", 1),
      select("left", names, a, "a"),
      select("right", names, b, "b"),
    );
  }

  async draw() {
    const drawn = ++this.drawn,
      { answers, group } = this.shown,
      active = document.activeElement && document.activeElement.name;
    if (!answers.length) {
      this.place.replaceChildren(
        el("p", {}, "No answers were small enough for this page: show.py shows them."),
      );
      return;
    }
    const [, , text] = answers[this.state.q];
    let content;
    try {
      content = await unpack(text);
    } catch (error) {
      content = null;
    }
    if (drawn !== this.drawn) return; // another question was asked for meanwhile
    const nodes = [this.controls(), this.key()];
    if (!content)
      nodes.push(el("p", { class: "warn" }, "This browser cannot unpack the answers (DecompressionStream)."));
    else {
      if (content.asked.length)
        nodes.push(
          el(
            "details",
            { class: "asked" },
            el("summary", {}, "The question"),
            content.asked.map((words_) => el("p", { class: "text" }, words_)),
          ),
        );
      for (const turn of content.turns) nodes.push(this.turn(turn, content.turns.length));
      for (const [number, error] of Object.entries(content.failed))
        nodes.push(el("p", { class: "warn" }, `${group.files[number].name} failed: ${error}`));
    }
    this.place.replaceChildren(...nodes);
    const again = active && this.place.querySelector(`[name="${active}"]`);
    if (again) again.focus();
    const target = this.state.at && this.place.querySelector(".here");
    if (target) target.scrollIntoView({ block: "center" });
  }

  key() {
    const shades = Array.from({ length: SHADES }, (_, i) =>
      el("span", { class: `token s${i + 1}` }, i + 1 === SHADES ? `${SHADES} or more` : String(i + 1)),
    );
    return el(
      "p",
      { class: "small" },
      "Tokens that one step committed: ",
      shades,
      el("span", { class: "token s0" }, "prefill"),
      " A line begins each step; hover or use the arrow keys. Files record how many tokens were drafted and accepted, not which were rejected.",
    );
  }

  turn(turn, count) {
    const { group } = this.shown,
      { a, b, at } = this.state,
      sides = [a, b].map((number) => turn.by.find(([file]) => file === number));
    const heading =
      count > 1
        ? el("h4", {}, turn.choice ? `choice ${turn.choice}, turn ${turn.turn}` : `turn ${turn.turn}`)
        : null;
    const [left, right] = sides.map((side) => side && turn.answers[side[1]].ids);
    let parting = null;
    if (left && right && sides[0][1] !== sides[1][1]) {
      parting = left.findIndex((id, i) => id !== right[i]);
      if (parting < 0) parting = left.length;
    }
    const here = at && at[0] === turn.choice && at[1] === turn.turn;
    const columns = sides.map((side, i) =>
      el(
        "section",
        { class: "answer", "aria-label": group.files[[a, b][i]].name },
        el("h5", {}, group.files[[a, b][i]].name),
        side ? this.answer(turn.answers[side[1]], side, parting, here) : el("p", {}, "no answer"),
      ),
    );
    const said =
      parting === null ? null : el("p", { class: "warn" }, `The two differ from token ${parting} on.`);
    return el("div", { class: "turn" }, heading, said, el("div", { class: "sides" }, columns));
  }

  answer(answer, [, , lengths, drafted, depth, finish], parting, here) {
    const ends =
      lengths && answer.ids ? lengths.reduce((all, n) => [...all, all[all.length - 1] + n], [1]) : null;
    const total = answer.ids ? answer.ids.length : null;
    const facts = [
      total === null ? "no token ids" : `${total} tokens`,
      lengths ? `${lengths.length} steps` : null,
      lengths && lengths.length ? `${((total - 1) / lengths.length).toFixed(2)} a step` : null,
      finish ? `ended by ${finish}` : null,
    ]
      .filter(Boolean)
      .join(", ");
    if (!ends)
      return el(
        "div",
        {},
        el("p", { class: "small" }, facts),
        el("p", { class: "text" }, answer.text !== undefined ? answer.text : answer.pieces.join("")),
      );
    const pieces = answer.pieces || answer.ids.map((id) => ` ${id}`);
    const steps = ends.map((end, i) => {
      const begin = i ? ends[i - 1] : 0,
        length = end - begin,
        shade = i ? Math.min(SHADES, length) : 0;
      const inner = [];
      for (let place = begin; place < end; place++) {
        const differs = parting !== null && place === parting;
        inner.push(
          differs
            ? el("b", { class: here ? "differs here" : "differs" }, pieces[place] || " ")
            : pieces[place],
        );
      }
      const span = el("span", { class: `token s${shade}`, tabindex: i ? -1 : 0, role: "img" }, inner);
      return tipped(
        span,
        i
          ? this.stepTip(i, lengths, drafted, depth, answer.ids.slice(begin, end), i === lengths.length)
          : `prefill: 1 token (${answer.ids[0]})`,
      );
    });
    if (parting === total) steps.push(el("b", { class: here ? "differs here" : "differs" }, "(end)"));
    const text = el("p", { class: "text steps" }, steps);
    text.addEventListener("keydown", (event) => roam(event, steps));
    return el(
      "div",
      {},
      el("p", { class: "small" }, facts),
      answer.pieces ? null : el("p", { class: "text" }, answer.text),
      text,
    );
  }

  stepTip(step, lengths, drafted, depth, ids, last) {
    const committed = lengths[step - 1],
      nodes = drafted ? drafted[step - 1] : null;
    const found = [
      `step ${step} of ${lengths.length}: ${committed} token${committed === 1 ? "" : "s"} committed`,
    ];
    if (nodes !== null)
      found.push(
        nodes
          ? `${Math.max(0, committed - 1)} of ${nodes} drafted accepted${depth ? ` (draft ${depth[step - 1]} deep)` : ""}${last ? ", the answer's end may have cut them" : ""}`
          : "nothing drafted",
      );
    found.push(`ids ${ids.join(" ")}`);
    return found.join("; ");
  }
}

function roam(event, steps) {
  // arrow keys go from step to step
  const now = steps.indexOf(event.target),
    by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (now < 0 || !by) return;
  event.preventDefault();
  const next = steps[now + by];
  if (!next || !next.hasAttribute("tabindex")) return;
  event.target.setAttribute("tabindex", -1);
  next.setAttribute("tabindex", 0);
  next.focus();
}
