// Brings the page to life. Everything it needs stands in #data.

const data = JSON.parse(document.getElementById("data").textContent);

for (const field of document.querySelectorAll("[data-chart]")) showChart(field, data[field.dataset.chart]);
for (const field of document.querySelectorAll("[data-heat]")) showHeatmap(field, data[field.dataset.heat]);
for (const table of document.querySelectorAll("details table")) makeSortable(table);
for (const figure of document.querySelectorAll("figure.bars")) offerBars(figure);

// Parts of bars: the pointer reads one, the keyboard all of a bar.
for (const part of document.querySelectorAll("[data-tip]")) {
  follow(part, (event) => showTip(event.clientX, event.clientY, part.dataset.tip), hideTip);
}
for (const bar of document.querySelectorAll(".bar")) {
  const parts = [...bar.querySelectorAll("[data-tip]")].map((part) => part.dataset.tip);
  bar.addEventListener("blur", hideTip);
  bar.addEventListener("focus", () => {
    if (!bar.matches(":focus-visible")) return;
    const box = bar.getBoundingClientRect();
    showTip(box.left + 20, box.bottom - 10, parts.join("\n"));
  });
}

const copy = async (code, button) => {
  getSelection().selectAllChildren(code); // where a browser refuses, one key is left to press
  const done = await navigator.clipboard?.writeText(code.textContent).then(() => true, () => false);
  button.textContent = done || document.execCommand("copy") ? "copied" : "press Ctrl+C";
  setTimeout(() => { button.textContent = "copy"; }, 2000);
};
for (const code of document.querySelectorAll(".command code")) {
  code.parentElement.before(tool("copy", "Copy the command", (button) => copy(code, button)));
}

addEventListener("scroll", hideTip, { passive: true });
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
