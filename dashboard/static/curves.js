// Draws training curves with uPlot from the points that came with the page: the step along the axis, or the rows of a batch, a line for each
// split, run or device. Draws them again when new points are put in place, the theme or the width changes.
(function () {
  "use strict";

  var plots = {};
  var COLOURS = { light: ["#1f6f2e", "#2563eb", "#b42318", "#7c3aed", "#9a5b00", "#0f766e"],
    dark: ["#6bd07c", "#7db0ff", "#ff8d80", "#c4a3ff", "#f0b45a", "#5ad1c4"] };
  var DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 5], [1, 4]]; // distinct without colour too

  function theme() {
    return document.documentElement.dataset.bsTheme === "dark" ? "dark" : "light";
  }

  // As wide as the longest label, so that none is cut.
  function labelWidth(_, labels) {
    return Math.max(48, 24 + 7 * Math.max.apply(null, (labels || [""]).map(function (label) { return String(label).length; })));
  }

  function height() {
    return window.innerWidth < 480 ? 130 : 220;
  }

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim() || "#888";
  }

  function shown(value) {
    if (value === null || value === undefined) { return "–"; }
    var size = Math.abs(value);
    if (size !== 0 && size < 0.001) { return value.toExponential(2); }
    if (size >= 1e6 && size < 1e15) {
      var letter = size >= 1e12 ? ["T", 1e12] : size >= 1e9 ? ["G", 1e9] : ["M", 1e6];
      return Number((value / letter[1]).toPrecision(3)).toLocaleString("en-US") + " " + letter[0];
    }
    return Number(value.toPrecision(4)).toLocaleString("en-US", { maximumFractionDigits: 6 });
  }

  // Of many points only the lines are drawn, and a single value has none.
  function alone(plot, line, shown) {
    var there = plot.data[line].map(function (value, i) { return value === null ? -1 : i; }).filter(function (i) { return i >= 0; });
    return !shown && there.length === 1 ? there : null;
  }

  function options(chart, place) {
    var look = {
      stroke: colour("--flower-text-muted"), grid: { stroke: colour("--bs-border-color"), width: 1 },
      ticks: { stroke: colour("--bs-border-color"), width: 1 }, font: "12px system-ui, sans-serif"
    };
    var whole = function (_, ticks) { return ticks.map(function (tick) { return Number.isInteger(tick) ? shown(tick) : ""; }); };
    var lines = chart.lines.map(function (line) {
      return {
        label: line.label, stroke: COLOURS[theme()][line.style % 6], width: 2, dash: DASHES[line.style % 6], spanGaps: true,
        points: { size: 5, show: chart.steps.length < 60, filter: alone }, value: function (_, value) { return shown(value); }
      };
    });
    return {
      width: place.clientWidth, height: height(), scales: { x: chart.axis === "step" ? { time: false } : { time: false, distr: 3, log: 2 } },
      axes: [
        Object.assign({}, look, { values: whole }),
        Object.assign({}, look, { size: labelWidth, values: function (_, ticks) { return ticks.map(shown); } })
      ],
      series: [{ label: chart.axis, value: function (_, value) { return shown(value); } }].concat(lines),
      cursor: { drag: { x: false, y: false } }
    };
  }

  function points() {
    var holder = document.getElementById("curves");
    return holder && holder.dataset.series ? JSON.parse(holder.dataset.series) : [];
  }

  function shape(chart) {
    return chart.title + "|" + chart.lines.map(function (line) { return line.label; }).join("|") + (chart.steps.length < 60);
  }

  function draw(afresh) {
    var charts = points();
    Object.keys(plots).forEach(function (i) {
      var stale = afresh || !charts[i] || plots[i].shape !== shape(charts[i]) || !plots[i].plot.root.isConnected;
      if (stale) {
        plots[i].plot.destroy();
        delete plots[i];
      }
    });
    charts.forEach(function (chart, i) {
      var place = document.getElementById("curve-" + i);
      var data = [chart.steps].concat(chart.lines.map(function (line) { return line.values; }));
      if (plots[i]) {
        plots[i].plot.setData(data);
      } else if (place) {
        plots[i] = { shape: shape(chart), plot: new uPlot(options(chart, place), data, place) };
      }
    });
  }

  function fit() {
    Object.keys(plots).forEach(function (i) {
      var place = document.getElementById("curve-" + i);
      if (place && place.clientWidth > 0 && plots[i].plot.width !== place.clientWidth) {
        plots[i].plot.setSize({ width: place.clientWidth, height: height() });
      }
    });
  }

  draw(false);
  document.addEventListener("forebay:placed", function () { draw(false); fit(); });
  new MutationObserver(function () { draw(true); }).observe(document.documentElement, { attributeFilter: ["data-bs-theme"] });
  new ResizeObserver(fit).observe(document.getElementById("live"));
}());
