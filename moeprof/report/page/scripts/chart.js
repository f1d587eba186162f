// Charts: Observable Plot draws them from the data in the page, in colours of the style sheet, so
// that a dark page and paper need no drawing anew. Around it stand legend, views, reading and CSV.

const colour = (series) => `var(--${series.hue})`;
const font = "system-ui, sans-serif";

// Ticks of a logarithmic axis: powers of two, or of ten with 2 and 5 between where few are spanned.
const logTicks = (measure, [low, high], width) => {
  const base = measure.scale === "log2" ? 2 : 10;
  const first = Math.floor(Math.log(low) / Math.log(base)), last = Math.ceil(Math.log(high) / Math.log(base));
  const steps = base === 2 || last - first > 5 ? [1] : last - first > 3 ? [1, 3] : [1, 2, 5];
  const ticks = [];
  for (let power = first; power <= last; power++) ticks.push(...steps.map((step) => step * base ** power));
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  const thin = Math.ceil(inside.length * 44 / width);
  return thin > 1 ? inside.filter((_, index) => index % thin === 0) : inside;
};

const domain = (measure, values) => {
  const logarithmic = (measure.scale ?? "linear") !== "linear";
  const low = measure.start ?? Math.min(...values) * (logarithmic ? 0.9 : 1);
  const high = measure.end ?? Math.max(...values) * (logarithmic ? 1.1 : 1);
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
};

// A scale and the axis that goes with it, for `room` pixels.
const ruler = (measure, values, room) => {
  const ends = domain(measure, values);
  const linear = (measure.scale ?? "linear") === "linear";
  const ticks = linear ? Math.max(2, Math.min(8, Math.round(room / 70))) : logTicks(measure, ends, room);
  return {
    scale: { type: linear ? "linear" : "log", domain: ends },
    axis: { ticks, text: (value) => tickText(value, measure.unit), label: measure.label, labelArrow: "none" },
  };
};

// The same for bars that stand side by side, in the order given, with as many names as fit.
const names = (label, values, room) => {
  const thin = Math.ceil(values.length * 30 / room);
  const ticks = values.filter((_, index) => index % thin === 0);
  return { scale: { type: "band", domain: values, padding: 0.15 }, axis: { ticks, text: String, label, labelArrow: "none" } };
};

// `floor` is where the axis of y begins.
const marksOf = (series, floor) => {
  const stroke = colour(series), points = series.points, at = { x: "0", y: "1" };
  const marks = [];
  if (points[0]?.length === 4) {
    marks.push(Plot.areaY(points, { x: "0", y1: "2", y2: "3", fill: stroke, fillOpacity: 0.22 }));
  }
  if (series.style === "bars") marks.push(Plot.barY(points, { ...at, fill: stroke }));
  if (series.style === "stems") marks.push(Plot.ruleX(points, { x: "0", y1: floor, y2: "1", stroke, strokeOpacity: 0.3 }));
  if (series.style === "stems" || series.style === "dots") marks.push(Plot.dot(points, { ...at, fill: stroke, r: 3.5 }));
  if ((series.style ?? "line") === "line") marks.push(Plot.line(points, { ...at, stroke, strokeWidth: 2 }));
  if (series.style === "line" && points.length <= 12) marks.push(Plot.dot(points, { ...at, fill: stroke, r: 2.5 }));
  if (series.style === "dashed") marks.push(Plot.line(points, { ...at, stroke, strokeWidth: 1.5, strokeDasharray: "6 5" }));
  return marks;
};

// Every tick gets its words: with a format of its own the library drops some of a logarithmic scale.
const axis = (make, { ticks, ...options }, more) =>
  Array.isArray(ticks) ? make(ticks, { ...options, ...more }) : make({ ticks, ...options, ...more });

const rightAxis = (right) => {
  const text = new Map(right.ticks);
  return Plot.axisY([...text.keys()], { anchor: "right", label: right.label, labelArrow: "none", text: (y) => text.get(y), tickSize: 0 });
};

const drawing = (chart, all, visible, width) => {
  const points = all.flatMap((series) => series.points);
  const bars = all.some((series) => series.style === "bars");
  const stems = all.some((series) => series.style === "stems");
  const xs = points.map((point) => point[0]), ys = points.flatMap((point) => point.slice(1));
  const x = bars ? names(chart.x.label, visible[0]?.points.map((point) => point[0]) ?? [], width - 70) : ruler(chart.x, xs, width - 70);
  const y = ruler(chart.y, ys, 260);
  if (stems) x.scale.domain = [Math.min(...xs) - 0.5, Math.max(...xs) + 0.5];
  const [first, last] = x.scale.domain;
  const flip = (mark) => !bars && (mark[0] - first) / (last - first) > 0.6;
  const named = (anchor, dx, some) => Plot.text(some, { x: "0", text: "1", frameAnchor: "top", textAnchor: anchor, dx, dy: 2, fill: "var(--ink)", stroke: "var(--panel)", strokeWidth: 5 });
  const marks = chart.marks ?? [];
  return Plot.plot({
    width, height: width < 500 ? 260 : 310, marginLeft: 52, marginRight: chart.right ? 44 : 14, marginTop: 30, marginBottom: 42,
    style: { background: "none", fontFamily: font, fontSize: 12, color: "var(--soft)", overflow: "visible" },
    x: x.scale,
    y: y.scale,
    marks: [
      Plot.gridY({ ticks: y.axis.ticks, stroke: "var(--line)", strokeOpacity: 1 }),
      axis(Plot.axisY, y.axis, { tickSize: 0 }),
      axis(Plot.axisX, x.axis, { tickSize: 4, labelAnchor: "center", labelOffset: 38 }),
      ...(chart.right ? [rightAxis(chart.right)] : []),
      ...visible.flatMap((series) => marksOf(series, y.scale.domain[0])),
      Plot.ruleX(marks, { x: "0", stroke: "var(--ink)", strokeDasharray: "2 3", strokeOpacity: 0.7 }),
      named("start", 5, marks.filter((mark) => !flip(mark))),
      named("end", -5, marks.filter(flip)),
    ],
  });
};

const valueText = (chart, [, y, low, high]) => {
  const unit = chart.y.unit, sign = /\w/.test(unit ?? "") ? "" : unit; // a word stands once
  return written(y, unit) + (high === undefined ? "" : ` (${written(low, sign)} to ${written(high, sign)})`);
};
const pointText = (chart, series, index) => {
  const words = series.words?.[index];
  if (chart.nearest && words) return words;
  return `${series.name}: ${valueText(chart, series.points[index])}${words ? `, ${words}` : ""}`;
};

// Draws `chart` into `field`, an empty element of the page, and its controls before it.
const showChart = (field, chart) => {
  const views = [...new Set(chart.series.map((series) => series.view ?? ""))];
  const hidden = new Set();
  let view = views[0], drawn = null, width = 0, reading = [], at = -1, tell = () => {};
  const cursor = element("div", { class: "cursor", hidden: "" });
  const legend = element("div", { class: "legend", role: "group", "aria-label": "Series" });

  const shown = () => chart.series.filter((series) => (series.view ?? "") === view);
  const visible = () => shown().filter((series) => !hidden.has(series.name));
  const draw = () => {
    leave();
    drawn?.remove();
    width = field.clientWidth;
    drawn = drawing(chart, shown(), visible(), width);
    drawn.setAttribute("aria-hidden", "true"); // the field around it has the words
    field.append(drawn);
    reading = readable();
    tell();
  };
  // Every point in pixels, by x.
  const readable = () => {
    const x = drawn.scale("x"), y = drawn.scale("y"), middle = (x.bandwidth ?? 0) / 2;
    return visible().flatMap((series) => series.points.map((point, index) =>
      ({ series, index, x: x.apply(point[0]) + middle, y: y.apply(point[1]) }))).sort((a, b) => a.x - b.x || a.y - b.y);
  };
  const leave = () => { hideTip(); cursor.hidden = true; at = -1; };
  // All that is shown at the x of a point, or the point alone. A line of two points is level and
  // holds between them.
  const words = (nearest) => {
    if (chart.nearest) return pointText(chart, nearest.series, nearest.index);
    const beside = visible().map((series) => closest(reading.filter((one) => one.series === series), nearest.x, null))
      .filter((one) => one && (Math.abs(one.x - nearest.x) < 9 || level(one.series, nearest)));
    const head = `${chart.x.label} ${written(nearest.series.points[nearest.index][0], chart.x.unit === "%" ? "%" : "")}`;
    return [head, ...beside.map((one) => pointText(chart, one.series, one.index))].join("\n");
  };
  const level = (series, { x }) => {
    const ends = reading.filter((one) => one.series === series).map((one) => one.x);
    return ends.length === 2 && ends[0] <= x && x <= ends[1];
  };
  const read = (nearest) => {
    at = reading.indexOf(nearest);
    cursor.hidden = false;
    cursor.className = chart.nearest ? "cursor ring" : "cursor";
    cursor.style.left = nearest.x + "px";
    cursor.style.top = chart.nearest ? nearest.y + "px" : "";
    const box = field.getBoundingClientRect();
    showTip(box.left + nearest.x, box.top + Math.min(nearest.y, box.height / 2), words(nearest));
  };
  const closest = (some, x, y) => some.reduce((best, one) => {
    const far = (each) => Math.hypot(each.x - x, y === null ? 0 : each.y - y);
    return !best || far(one) < far(best) ? one : best;
  }, null);

  follow(field, (event) => {
    const box = field.getBoundingClientRect();
    const nearest = closest(reading, event.clientX - box.left, chart.nearest ? event.clientY - box.top : null);
    if (nearest) read(nearest);
  }, leave);
  field.addEventListener("blur", leave);
  field.addEventListener("keydown", (event) => {
    const stops = chart.nearest ? reading : reading.filter((one, index) => index === 0 || one.x > reading[index - 1].x);
    const here = at < 0 ? -1 : stops.findIndex((one) => one.x >= reading[at].x && (!chart.nearest || one === reading[at]));
    const goes = { ArrowRight: here + 1, ArrowLeft: here < 0 ? stops.length - 1 : here - 1, Home: 0, End: stops.length - 1 };
    if (event.key === "Escape") return leave();
    if (!(event.key in goes) || !stops.length) return;
    event.preventDefault();
    read(stops[Math.min(Math.max(goes[event.key], 0), stops.length - 1)]);
  });

  const fillLegend = () => legend.replaceChildren(...shown().map((series) => {
    const key = element("i", { class: `key ${series.style ?? "line"} ${series.hue}` });
    const one = shown().length === 1;
    const label = element(one ? "span" : "button", one ? {} : { type: "button", "aria-pressed": String(!hidden.has(series.name)) }, series.name);
    label.prepend(key);
    if (!one) label.addEventListener("click", () => {
      hidden[hidden.has(series.name) ? "delete" : "add"](series.name);
      label.setAttribute("aria-pressed", String(!hidden.has(series.name)));
      draw();
    });
    return label;
  }));
  const save = () => saveCsv(field.dataset.chart ?? "figure", [
    ["view", "series", chart.x.label, chart.y.label, "low", "high", "note"],
    ...chart.series.flatMap((series) => series.points.map(([x, y, low, high], index) =>
      [series.view ?? "", series.name, x, y, low ?? "", high ?? "", series.words?.[index] ?? ""])),
  ]);

  // A list to pick a value of x from, whose numbers then stay below the chart.
  const picker = () => {
    const xs = [...new Set(shown().flatMap((series) => series.points.map((point) => point[0])))].sort((a, b) => a - b);
    const select = element("select", { "aria-label": chart.x.label }), output = element("output");
    select.append(...xs.map((x) => element("option", { value: String(x) }, grouped(x))));
    select.value = String(chart.pick);
    const tell = () => {
      const nearest = reading.find((one) => one.series.points[one.index][0] === Number(select.value));
      output.textContent = nearest ? words(nearest) : "nothing is shown here";
    };
    select.addEventListener("change", tell);
    const line = element("label", { class: "pick" }, chart.x.label + " ");
    line.append(select);
    field.after(line, output);
    return tell;
  };

  field.append(cursor);
  fillLegend();
  field.before(tool("CSV", `Download the data of \u201c${chart.title}\u201d as CSV`, save));
  if (views.length > 1) field.before(choice(chart.choice, views, (index) => { view = views[index]; fillLegend(); draw(); }));
  field.before(legend);
  draw();
  if (chart.pick !== undefined) (tell = picker())();
  new ResizeObserver(() => { if (Math.abs(field.clientWidth - width) > 1) draw(); }).observe(field);
};
