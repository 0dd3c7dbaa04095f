// The text that was scored, coloured by what the model gives along it.

/** Pieces of a text: [{piece, value, name, cut}]. `ends` count code points, so the text is taken apart by code points. */
function pieces(text, along) {
  const points = Array.from(text);
  let start = 0;
  const found = along.scores.map((value, index) => {
    const end = along.ends[index];
    const number = along.tokens[index];
    const before = index ? along.tokens[index - 1] : -1;
    const piece = { piece: points.slice(start, end).join(""), value,
      name: along.steps ? `step ${along.steps[index] + 1}` : `token ${number}`,
      cut: !along.steps && number !== before + 1 };
    start = end;
    return piece;
  });
  if (start < points.length) found.push({ piece: points.slice(start).join(""), value: null, name: "rest", cut: false });
  return found;
}

/** Line ends and control characters become visible, and a piece without letters can still be pointed at. */
const visible = (text) => (text === "" ? "▪" : text.replace(/\n/g, "↵\n").replace(/[\0-\x08\x0b-\x1f]/g, controlPicture));
const controlPicture = (character) => String.fromCharCode(0x2400 + character.charCodeAt(0));

/**
 * The text as a block. With values it can be walked through by the arrow keys, and a line below it says the value of the
 * piece that is pointed at. `range` is [least, greatest] of all texts that are compared, so that colours mean the same.
 */
function scoredText(label, text, along, range) {
  if (!along || !along.ends) {
    return make("pre", { class: "scored", dir: "auto", tabindex: 0, role: "region", "aria-label": label }, visible(text));
  }
  const parts = pieces(text, along);
  const readout = make("p", { class: "soft readout", "aria-live": "polite" }, "Point at a piece, or walk with the arrow keys.");
  const spans = parts.map((part, index) =>
    make("span", { class: part.cut ? "piece cut" : "piece", "data-index": index }, visible(part.piece)));
  spans.forEach((span, index) => {
    const { value } = parts[index];
    if (value === null) return;
    const place = range[1] > range[0] ? (2 * (value - range[0])) / (range[1] - range[0]) - 1 : 0; // -1 to 1
    span.style.setProperty("--strength", Math.abs(place).toFixed(2));
    span.classList.add(place < 0 ? "low" : "high");
  });
  let at = -1;
  const point = (index) => {
    if (at >= 0) spans[at].classList.remove("current");
    at = index;
    spans[at].classList.add("current");
    const { value, name, piece, cut } = parts[at];
    readout.replaceChildren(`${name}: `, userText(JSON.stringify(shortened(piece, 40))),
      `  ${value === null ? "no value" : shown(value)}`, cut ? "  (what stands before this token was cut off)" : "");
  };
  const block = make("pre", {
    class: "scored", dir: "auto", tabindex: 0, role: "application", "aria-label": `${label}; arrow keys walk through its values`,
    onmouseover: (event) => {
      const index = event.target.dataset && event.target.dataset.index;
      if (index !== undefined) point(Number(index));
    },
    onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      point(Math.min(Math.max(at + step, 0), spans.length - 1));
      spans[at].scrollIntoView({ block: "nearest" });
    },
  }, spans);
  return make("div", {}, block, readout);
}
