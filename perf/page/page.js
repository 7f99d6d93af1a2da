
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const compare = (a, b) => parseFloat(a) - parseFloat(b) || a.localeCompare(b, undefined, { numeric: true });
  heads.forEach((head, column) => {
    const button = document.createElement("button"), text = row => row.cells[column].textContent;
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      body.append(...[...body.rows].sort((a, b) => sign * compare(text(a), text(b))));
    };
  });
  const input = document.createElement("input");
  input.type = "search";
  input.placeholder = "only rows with these words, such as: operator forward zoom-2";
  input.setAttribute("aria-label", input.placeholder);
  input.oninput = () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) {
      const cells = " " + [...row.cells].map(cell => cell.textContent.toLowerCase()).join(" ") + " ";
      row.hidden = !words.every(word => cells.includes(word));
    }
  };
  table.parentElement.before(input);
}
