// The heatmap is an image of one pixel a cell. This reads it: cell by cell, and a layer as bars.

const showHeatmap = (field, heat) => {
  const figure = field.closest("figure"), detail = figure.querySelector(".detail");
  const cell = field.querySelector(".cell");
  const pictures = [...field.querySelectorAll("picture")];
  const rows = heat.layers.length;
  let view = 0, row = -1, expert = 0;

  const mark = (box, across, down, wide) => {
    box.hidden = false;
    box.style.cssText = `left:${100 * across / heat.experts}%;top:${100 * down / rows}%;width:${100 * wide / heat.experts}%;height:${100 / rows}%`;
  };
  const words = () => {
    const load = heat.views[view][row], mean = load.reduce((sum, value) => sum + value, 0) / heat.experts;
    return `layer ${heat.layers[row]}, expert ${expert}\n${grouped(load[expert])} assignments` +
      (mean ? `\n${times(load[expert] / mean)} the layer's mean` : "");
  };
  const read = (x, y) => { mark(cell, expert, row, 1); showTip(x, y, words()); };
  const leave = () => { hideTip(); cell.hidden = true; };

  // Bars of one layer by id and by load, drawn as any other chart.
  const open = () => {
    const load = heat.views[view][row], mean = load.reduce((sum, value) => sum + value, 0) / heat.experts;
    const ids = load.map((_, id) => id), order = [...ids].sort((a, b) => load[b] - load[a] || a - b);
    const bars = (name, some) => ({
      name: "assignments", hue: "a", style: "bars", view: name,
      points: some.map((id) => [id, load[id]]), words: some.map((id) => mean ? `${times(load[id] / mean)} the mean` : ""),
    });
    const chart = {
      title: `Layer ${heat.layers[row]}, ${heat.names[view]}`, choice: "Order of the experts",
      x: { label: "expert" }, y: { label: "assignments", start: 0 },
      series: [bars("by id", ids), bars("by load", order)],
    };
    const shown = element("div", { class: "plot", tabindex: "0", role: "group", "aria-roledescription": "chart", "data-chart": `layer-${heat.layers[row]}`,
      "aria-label": `Assignments of each expert of layer ${heat.layers[row]}; the busiest is ${order[0]} with ${grouped(load[order[0]])}.` });
    detail.replaceChildren(element("h3", {}, `${chart.title}: the busiest expert is ${order[0]}`), shown);
    detail.hidden = false;
    picker.value = String(row);
    showChart(shown, chart);
  };

  choosing([...figure.querySelectorAll(".views button")], (index) => {
    view = index;
    pictures.forEach((picture, at) => { picture.hidden = at !== index; });
    if (!detail.hidden) open();
  });
  const seek = (event) => {
    const box = field.getBoundingClientRect();
    const inside = (value, most) => Math.min(Math.max(Math.floor(value * most), 0), most - 1);
    row = inside((event.clientY - box.top) / box.height, rows);
    expert = inside((event.clientX - box.left) / box.width, heat.experts);
  };
  follow(field, (event) => { seek(event); read(event.clientX, event.clientY); }, leave);
  field.addEventListener("click", (event) => { seek(event); open(); });
  field.addEventListener("blur", leave);
  field.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], Home: [0, -expert], End: [0, heat.experts] }[event.key];
    if (event.key === "Escape") return leave();
    if (event.key === "Enter" && row >= 0) return open();
    if (!step) return;
    event.preventDefault();
    [row, expert] = row < 0 ? [0, 0] : [Math.min(Math.max(row + step[0], 0), rows - 1), Math.min(Math.max(expert + step[1], 0), heat.experts - 1)];
    const box = field.getBoundingClientRect();
    read(box.left + (expert + 0.5) / heat.experts * box.width, box.top + (row + 0.5) / rows * box.height);
  });

  const picker = element("select", { "aria-label": "Layer to show as bars" });
  picker.append(...heat.layers.map((layer, index) => element("option", { value: String(index) }, `layer ${layer}`)));
  picker.addEventListener("change", () => { row = Number(picker.value); open(); });
  const pick = tool("show as bars", "Show the experts of this layer as bars", () => { row = Number(picker.value); open(); });
  const line = element("div", { class: "pick" });
  line.append(picker, pick);
  detail.before(line);
  figure.querySelector("h3").after(tool("CSV", "Download the loads as CSV", () => saveCsv("load", [
    ["layer", "expert", ...heat.names],
    ...heat.layers.flatMap((layer, at) => heat.views[0][at].map((_, id) => [layer, id, ...heat.views.map((load) => load[at][id])])),
  ])));
};
