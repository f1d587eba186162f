// What the page draws with: everything else of Observable Plot is left out of the bundle.
export { areaY, axisX, axisY, barY, dot, gridY, line, plot, ruleX, text } from "@observablehq/plot";
