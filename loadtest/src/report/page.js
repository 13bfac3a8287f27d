// Reads a chart's figures out under the pointer. The figures are those of the table below it.
"use strict";
for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector("svg.lines");
  const rows = [...figure.querySelectorAll("tr[data-x]")];
  if (!svg || rows.length === 0) continue;
  const names = [...figure.querySelectorAll("thead th")].map((cell) => cell.textContent);
  const cursor = svg.querySelector(".cursor");
  const output = figure.querySelector("output");
  const distance = (row, x) => Math.abs(Number(row.dataset.x) - x);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const row = rows.reduce((best, next) => (distance(next, x) < distance(best, x) ? next : best));
    cursor.setAttribute("transform", `translate(${row.dataset.x} 0)`);
    cursor.setAttribute("visibility", "visible");
    output.textContent = [...row.cells].map((cell, at) => `${names[at]} ${cell.textContent}`).join(", ");
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    output.textContent = "";
  });
  figure.dataset.ready = "true";
}
