// Charts as SVG elements. Colours come from the style sheet.

const CHART = { width: 480, height: 240, left: 52, right: 12, top: 10, bottom: 38 };

function frame(title, xLabel, yLabel, x, y) {
  const { width, height, left, right, top, bottom } = CHART;
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  const axis = (value, scale, at) => make("text", at(scale(value)), tick(value));
  svg.append(
    make("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    make("line", { class: "axis", x1: left, x2: left, y1: top, y2: height - bottom }),
    make("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xLabel),
    make("text", { transform: `translate(11 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel),
    ...ticks(x.domain).map((value) =>
      axis(value, x.scale, (at) => ({ x: at, y: height - bottom + 14, "text-anchor": "middle" }))),
    ...ticks(y.domain).map((value) => axis(value, y.scale, (at) => ({ x: left - 5, y: at + 4, "text-anchor": "end" }))));
  return svg;
}

function linear([low, high], [from, to]) {
  const span = high - low || 1;
  return { domain: [low, low + span], scale: (value) => from + ((value - low) / span) * (to - from) };
}

const xAxis = (domain) => linear(domain, [CHART.left, CHART.width - CHART.right]);
const yAxis = (domain) => linear(domain, [CHART.height - CHART.bottom, CHART.top]);

/** The least and the greatest of the values and 0. */
const extent = (values) =>
  values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [0, 0]);

function ticks([low, high]) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, index) => (first + index) * step);
}

const tick = (value) => (Math.abs(value) >= 1e4 ? value.toExponential(0) : String(Number(value.toPrecision(4))));

/** How many values fall into each of at most 30 bins; those below zero have a colour of their own. */
function histogram(title, xLabel, values) {
  const [low, high] = extent(values);
  const step = (high - low) / 30 || 1;
  const first = Math.floor(low / step); // 0 is the border of two bins
  const bins = new Array(Math.floor(high / step) - first + 1).fill(0);
  for (const value of values) bins[Math.floor(value / step) - first] += 1;
  const x = xAxis([first * step, (first + bins.length) * step]), y = yAxis([0, Math.max(...bins, 1)]);
  const svg = frame(title, xLabel, "count", x, y);
  bins.forEach((count, index) => {
    const from = (first + index) * step;
    if (count) {
      svg.append(make("rect", {
        class: from < 0 ? "below" : "above", x: x.scale(from) + 0.5, width: Math.max(1, x.scale(from + step) - x.scale(from) - 1),
        y: y.scale(count), height: y.scale(0) - y.scale(count),
      }, make("title", {}, `${count} from ${shown(from, 2)} to ${shown(from + step, 2)}`)));
    }
  });
  return svg;
}

/** One dot for each pair of numbers; of more than 2,000, every n-th. */
function scatter(title, xLabel, yLabel, points) {
  const some = points.filter((_, index) => index % Math.ceil(points.length / 2000) === 0);
  const x = xAxis(extent(some.map(([value]) => value))), y = yAxis(extent(some.map(([, value]) => value)));
  const svg = frame(title, xLabel, yLabel, x, y);
  svg.append(make("line", { class: "zero", x1: x.scale(x.domain[0]), x2: x.scale(x.domain[1]), y1: y.scale(0), y2: y.scale(0) }));
  for (const [across, up] of some) {
    svg.append(make("circle", { class: up < 0 ? "below" : "above", cx: x.scale(across), cy: y.scale(up), r: 2.2 }));
  }
  return svg;
}

const figure = (title, chart, caption) =>
  make("figure", {}, make("h3", {}, title), chart, make("figcaption", {}, caption));

// ---- figures of a sample

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Pearson's correlation; null where one of the two does not vary. */
function correlation(points) {
  const centerX = mean(points.map(([x]) => x)), centerY = mean(points.map(([, y]) => y));
  let xx = 0, yy = 0, xy = 0;
  for (const [x, y] of points) {
    xx += (x - centerX) ** 2;
    yy += (y - centerY) ** 2;
    xy += (x - centerX) * (y - centerY);
  }
  return points.length > 1 && xx > 0 && yy > 0 ? xy / Math.sqrt(xx * yy) : null;
}
