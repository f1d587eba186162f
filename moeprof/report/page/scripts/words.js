// Numbers as the sentences of the page write them, and tables as CSV.

const grouped = (number) => number.toLocaleString("en-US", { maximumFractionDigits: 0 });
const digits = (number) => {
  if (Number.isInteger(number) || Math.abs(number) >= 1000) return grouped(number);
  return Math.abs(number) >= 1e-4 ? String(Number(number.toPrecision(Math.abs(number) >= 100 ? 4 : 3))) : number.toExponential(1);
};
const percent = (share) => {
  const value = 100 * share;
  return (value === 0 || value === 100 || (value >= 10 && value < 99.5) ? value.toFixed(0) : value.toFixed(1)) + "\u00a0%";
};
const times = (ratio) => (ratio >= 10 ? ratio.toPrecision(3) : ratio.toFixed(2)) + "\u00d7";

// A value with its unit, and the same without it for an axis whose label has the unit.
const written = (value, unit) => {
  if (unit === "%") return percent(value);
  if (unit === "\u00d7") return times(value);
  return digits(value) + (unit ? "\u00a0" + unit : "");
};
const tickText = (value, unit) =>
  unit === "%" ? `${Number((100 * value).toPrecision(12))}\u00a0%` : unit === "\u00d7" ? `${value}\u00d7` : digits(value);

// A text that a spreadsheet would take for a formula is marked as text.
const csvCell = (value) => {
  if (typeof value === "number") return String(value);
  const text = String(value ?? "").replace(/^(?=[=+@\t\r-])/, "'");
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
const saveCsv = (name, rows) => {
  const text = rows.map((row) => row.map(csvCell).join(",")).join("\r\n") + "\r\n";
  const address = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" }));
  element("a", { href: address, download: `${name}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
};
