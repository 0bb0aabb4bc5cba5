// Moves the focus among the squares of a grid by the arrow keys, Home and End: the grid is one stop of the Tab key, however
// many squares it holds.
(function () {
  "use strict";

  function across(cells) {
    var top = cells[0].offsetTop;
    var row = cells.filter(function (cell) { return cell.offsetTop === top; });
    return row.length;
  }

  document.addEventListener("keydown", function (event) {
    var grid = event.target.closest(".fb-grid");
    if (!grid || event.altKey || event.ctrlKey || event.metaKey) { return; }
    var cells = Array.from(grid.querySelectorAll("a"));
    var at = cells.indexOf(event.target), wide = across(cells);
    var next = {
      ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + wide, ArrowUp: at - wide, Home: 0, End: cells.length - 1
    }[event.key];
    if (next === undefined || at < 0) { return; }
    event.preventDefault();
    if (cells[next]) {
      cells[next].focus();
    }
  });
}());
