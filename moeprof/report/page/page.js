// Hover over figures and choice of heatmap view. Everything it needs stands in #data.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");

  const show = (event, text) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = event.clientX + 14 + box.width > innerWidth ? event.clientX - 14 - box.width : event.clientX + 14;
    const below = event.clientY + 16 + box.height > innerHeight;
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = (below ? event.clientY - 12 - box.height : event.clientY + 16) + "px";
  };
  const follow = (element, move, leave) => {
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerdown", move);
    element.addEventListener("pointerleave", () => { tip.hidden = true; leave(); });
  };
  const place = (event, element) => {
    const box = element.getBoundingClientRect();
    const inside = (value) => Math.min(Math.max(value, 0), 0.999999);
    return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
  };

  const grouped = (number) => number.toLocaleString("en-US");
  const times = (ratio) => (ratio >= 10 ? ratio.toPrecision(3) : ratio.toFixed(2)) + "\u00d7";

  for (const field of document.querySelectorAll("[data-heat]")) {
    const heat = data[field.dataset.heat];
    const cell = field.querySelector(".cell");
    const pictures = [...field.querySelectorAll("picture")];
    const buttons = [...field.closest("figure").querySelectorAll("button")];
    let view = 0;
    for (const button of buttons) {
      button.addEventListener("click", () => {
        view = Number(button.dataset.view);
        pictures.forEach((picture, index) => { picture.hidden = index !== view; });
        buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      });
    }
    follow(field, (event) => {
      const [x, y] = place(event, field);
      const row = Math.floor(y * heat.layers.length);
      const expert = Math.floor(x * heat.experts);
      const load = heat.views[view][row];
      const mean = load.reduce((sum, value) => sum + value, 0) / heat.experts;
      cell.hidden = false;
      cell.style.cssText = `left:${100 * expert / heat.experts}%;top:${100 * row / heat.layers.length}%;` +
        `width:${100 / heat.experts}%;height:${100 / heat.layers.length}%`;
      show(event, `layer ${heat.layers[row]}, expert ${expert}\n${grouped(load[expert])} assignments` +
        (mean ? `\n${times(load[expert] / mean)} the layer's mean` : ""));
    }, () => { cell.hidden = true; });
  }

  for (const field of document.querySelectorAll("[data-hover]")) {
    const points = data[field.dataset.hover] || [];
    const cursor = field.querySelector(".cursor");
    if (!points.length) continue;
    follow(field, (event) => {
      const [x] = place(event, field);
      const near = points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
      cursor.hidden = false;
      cursor.style.left = 100 * near[0] + "%";
      show(event, near[1]);
    }, () => { cursor.hidden = true; });
  }

  for (const part of document.querySelectorAll("[data-tip]")) {
    follow(part, (event) => show(event, part.dataset.tip), () => {});
  }
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
})();
