// Draws the Overview's charts with uPlot from the points in the page, and again when new ones are swapped in,
// or the theme or the width changes.
(function () {
  "use strict";

  var charts = {};
  var PERCENTILES = ["p50", "p95", "p99"];
  var STROKES = [[], [6, 3], [2, 3]]; // distinct without colour too

  // As wide as the longest label, so that none is cut.
  function labelWidth(_, labels) {
    return Math.max(48, 24 + 7 * Math.max.apply(null, (labels || [""]).map(function (label) { return String(label).length; })));
  }

  function height() {
    return window.innerWidth < 480 ? 130 : 200;
  }

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim() || "#888";
  }

  function rounded(number) {
    return Number(number.toPrecision(3)).toLocaleString("en-US", { maximumFractionDigits: 3 });
  }

  function seconds(value) {
    if (value === null || value === undefined) { return "–"; }
    if (value === 0) { return "0 s"; }
    if (value < 1) { return rounded(value * 1000) + " ms"; }
    if (value < 120) { return rounded(value) + " s"; }
    return value < 7200 ? rounded(value / 60) + " min" : rounded(value / 3600) + " h";
  }

  function jobs(value) {
    return value === null || value === undefined ? "–" : rounded(value) + "/s";
  }

  // Where uPlot draws no points, it is for the lines to be seen: a value without a neighbour has none.
  function alone(plot, line, shown) {
    var values = plot.data[line];
    function there(i) { return values[i] !== null && values[i] !== undefined; }
    return shown ? null : values.map(function (_, i) { return i; }).filter(function (i) { return there(i) && !there(i - 1) && !there(i + 1); });
  }

  function line(label, stroke, dash, show) {
    return {
      label: label, stroke: stroke, width: 2, dash: dash, points: { size: 5, filter: alone }, spanGaps: false,
      value: function (_, value) { return show(value); }
    };
  }

  function lines(key) {
    if (key === "rate") {
      return [line("succeeded", colour("--flower-success"), [], jobs), line("failed", colour("--flower-danger"), [6, 3], jobs)];
    }
    var colours = [colour("--flower-success"), colour("--flower-active"), colour("--flower-danger")];
    return PERCENTILES.map(function (name, i) { return line(name, colours[i], STROKES[i], seconds); });
  }

  function clock(value) {
    return new Date(value * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: "UTC" });
  }

  function axes(show) {
    var look = {
      stroke: colour("--flower-text-muted"), grid: { stroke: colour("--bs-border-color"), width: 1 },
      ticks: { stroke: colour("--bs-border-color"), width: 1 }, font: "12px system-ui, sans-serif"
    };
    return [
      Object.assign({}, look, { values: function (_, ticks) { return ticks.map(clock); } }),
      Object.assign({}, look, { size: labelWidth, values: function (_, ticks) { return ticks.map(show); } })
    ];
  }

  function options(key, place) {
    return {
      width: place.clientWidth, height: height(), tzDate: function (stamp) { return uPlot.tzDate(new Date(stamp * 1000), "UTC"); },
      scales: { y: { range: function (_, low, high) { return [0, high > 0 ? high * 1.1 : 1]; } } },
      axes: axes(key === "rate" ? jobs : seconds),
      series: [{ label: "UTC", value: function (_, value) { return value === null ? "–" : clock(value); } }].concat(lines(key)),
      cursor: { drag: { x: false, y: false } }
    };
  }

  function points() {
    var holder = document.getElementById("series");
    return holder && holder.dataset.series ? JSON.parse(holder.dataset.series) : null;
  }

  function data(key, all) {
    return [all.starts].concat(key === "rate" ? [all.succeeded, all.failed] : all[key]);
  }

  function draw(afresh) {
    var all = points();
    if (!all) { return; }
    ["rate", "wait", "run", "total"].forEach(function (key) {
      var place = document.getElementById("chart-" + key);
      if (charts[key] && afresh) {
        charts[key].destroy();
        charts[key] = null;
      }
      if (charts[key]) {
        charts[key].setData(data(key, all));
      } else {
        charts[key] = new uPlot(options(key, place), data(key, all), place);
      }
    });
  }

  draw(false);
  document.addEventListener("forebay:placed", function () { draw(false); });
  new MutationObserver(function () { draw(true); }).observe(document.documentElement, { attributeFilter: ["data-bs-theme"] });
  new ResizeObserver(function () {
    Object.keys(charts).forEach(function (key) {
      var place = document.getElementById("chart-" + key);
      if (charts[key] && charts[key].width !== place.clientWidth && place.clientWidth > 0) {
        charts[key].setSize({ width: place.clientWidth, height: height() });
      }
    });
  }).observe(document.querySelector(".fb-charts"));
}());
