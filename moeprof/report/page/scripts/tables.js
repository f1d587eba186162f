// Tables that sort by a click on a heading; tables and bars give their numbers as CSV.

// '12.9 GB' and '1.3 MB' compare as bytes; what begins with no number comes last, by its letters.
const SIZES = { k: 1e3, M: 1e6, B: 1e9, kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 };
const cellValue = (text) => {
  const found = /^([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*([A-Za-z]*)/.exec(text.trim().replaceAll("\u2212", "-"));
  return found ? Number(found[1].replaceAll(",", "")) * (SIZES[found[2]] ?? 1) : NaN;
};
const compared = (a, b) => {
  const [x, y] = [cellValue(a), cellValue(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a.localeCompare(b, "en");
  return x - y;
};

const makeSortable = (table) => {
  const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells];
  const save = tool("CSV", `Download \u201c${table.closest("details").querySelector("summary").textContent}\u201d as CSV`, () =>
    saveCsv(table.closest("section").id + "-table", [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent))));
  table.closest(".scroll").before(save);
  if (body.rows.length < 2) return;
  headings.forEach((heading, column) => {
    const button = element("button", { type: "button" }, heading.textContent);
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const falling = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const text = (row) => row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) => compared(text(a), text(b)) * (falling ? -1 : 1));
      body.append(...rows);
    });
  });
};

// A row a part, with what the page says of it.
const offerBars = (figure) => {
  const title = figure.querySelector("h3").textContent;
  const rows = [...figure.querySelectorAll(".bar")].flatMap((bar) => [...bar.querySelectorAll(".block:not(.gap)")].map((part) => [
    bar.previousElementSibling.textContent, part.dataset.part, part.dataset.tip ?? "", bar.nextElementSibling.textContent,
  ]));
  figure.querySelector("h3").after(tool("CSV", `Download the data of \u201c${title}\u201d as CSV`, () => saveCsv(figure.id, [["bar", "part", "note", "verdict"], ...rows])));
};
