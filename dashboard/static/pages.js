// Keeps a page of ours up to date: asks for the part that changes, puts in place what differs, pauses while nobody looks
// and waits longer after each failure. Opens and closes the dialogs that ask for confirmation. Every text was escaped by
// the server; nothing here builds HTML.
(function () {
  "use strict";

  var LONGEST_S = 30;
  var live = document.getElementById("live");
  var status = document.getElementById("live-status");
  var dot = document.getElementById("live-dot");
  var seen = {};
  var failures = 0;
  var timer = null;

  function setStatus(text, ok) {
    if (status.textContent !== text) {
      status.textContent = text;
    }
    dot.classList.toggle("status-dot-live", ok);
    dot.classList.toggle("status-dot-error", !ok);
  }

  function address() {
    var query = new URLSearchParams(window.location.search);
    query.delete("notice");
    query.set("fragment", "1");
    return window.location.pathname + "?" + query.toString();
  }

  function parts(root) {
    return Array.from(root.querySelectorAll("[data-part]"));
  }

  function names(list) {
    return list.map(function (part) { return part.dataset.part; }).join();
  }

  // What the reader is at stays: the focus, what is unfolded or ticked, how far a table is scrolled.
  function keeping(part, change) {
    var focused = part.contains(document.activeElement) ? document.activeElement.id : "";
    var open = Array.from(part.querySelectorAll("details[open][id]"), function (e) { return e.id; });
    var checked = Array.from(part.querySelectorAll("input[id]:checked"), function (e) { return e.id; });
    var scrolled = Array.from(part.querySelectorAll(".fb-scroll"), function (e) { return e.scrollLeft; });
    var after = change();
    open.forEach(function (id) {
      var element = document.getElementById(id);
      if (element) { element.open = true; }
    });
    checked.forEach(function (id) {
      var element = document.getElementById(id);
      if (element) { element.checked = true; }
    });
    Array.from(after.querySelectorAll(".fb-scroll")).forEach(function (e, i) { e.scrollLeft = scrolled[i] || 0; });
    if (focused && document.getElementById(focused)) {
      document.getElementById(focused).focus({ preventScroll: true });
    }
  }

  function place(text) {
    var fresh = new DOMParser().parseFromString(text, "text/html").body;
    var now = parts(live), next = parts(fresh);
    if (names(now) !== names(next)) {
      keeping(live, function () {
        var kept = {};
        now.forEach(function (part) { kept[part.dataset.part] = part; });
        live.replaceChildren.apply(live, next.map(function (part) {
          var name = part.dataset.part, html = part.outerHTML;
          if (kept[name] && seen[name] === html) { return kept[name]; }
          seen[name] = html;
          return part;
        }));
        return live;
      });
    } else {
      next.forEach(function (part, i) {
        var html = part.outerHTML;
        if (seen[part.dataset.part] !== html) {
          keeping(now[i], function () { now[i].replaceWith(part); return part; });
          seen[part.dataset.part] = html;
        }
      });
    }
    localTimes(live);
    document.dispatchEvent(new CustomEvent("forebay:placed"));
  }

  function localTimes(root) {
    root.querySelectorAll("time[datetime]").forEach(function (time) {
      time.title = new Date(time.dateTime).toLocaleString() + " (local time)";
    });
  }

  function wait(seconds) {
    window.clearTimeout(timer);
    timer = window.setTimeout(ask, seconds * 1000);
  }

  function ask() {
    if (document.hidden) {
      setStatus("Paused", true);
      return;
    }
    fetch(address(), { credentials: "same-origin", signal: AbortSignal.timeout(10000) }).then(function (answer) {
      if (answer.status === 401 || answer.redirected) {
        setStatus("Logged out: reload the page", false);
        return null;
      }
      if (!answer.ok && answer.status !== 400) {
        throw new Error(String(answer.status));
      }
      return answer.text();
    }).then(function (text) {
      if (text === null) {
        return;
      }
      failures = 0;
      place(text);
      if (live.querySelector("[data-final]")) {
        setStatus("Complete", true);
        wait(LONGEST_S);
      } else {
        setStatus("Live", true);
        wait(Number(live.dataset.poll));
      }
    }).catch(function () {
      failures += 1;
      var pause = Math.min(LONGEST_S, Number(live.dataset.poll) * Math.pow(2, failures));
      setStatus("The dashboard does not answer; trying again every " + pause + " s", false);
      wait(pause);
    });
  }

  document.addEventListener("visibilitychange", function () {
    if (!document.hidden) {
      wait(0);
    }
  });

  document.addEventListener("click", function (event) {
    var button = event.target.closest("[data-open], [data-close]");
    if (button && button.dataset.open) {
      document.getElementById(button.dataset.open).showModal();
    } else if (button) {
      document.getElementById(button.dataset.close).close();
    }
  });

  if (live) {
    parts(live).forEach(function (part) { seen[part.dataset.part] = part.outerHTML; });
    localTimes(live);
    wait(Number(live.dataset.poll));
  }
}());
