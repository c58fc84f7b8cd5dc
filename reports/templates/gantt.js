"use strict";
// Zooms and moves Gantt charts, and says what is under the pointer. Spans keep their order in the drawing and in the data.
(() => {
  const LABEL = 20; // least pixels of a span that shows its layer, as in gantt.py
  const TICKS = 12;
  const SVG = "http://www.w3.org/2000/svg";

  const tickValues = (from, to) => {
    const power = 10 ** Math.floor(Math.log10((to - from) / TICKS));
    const step = [1, 2, 5, 10].map((factor) => power * factor).find((each) => each * TICKS >= to - from);
    const values = [];
    for (let place = Math.ceil(from / step); place * step <= to; place += 1) values.push(Number((place * step).toPrecision(12)));
    return values;
  };

  document.querySelectorAll('figure[data-script="gantt.js"]').forEach((figure) => {
    const data = JSON.parse(figure.querySelector("script.script-data").textContent);
    const drawing = figure.querySelector(".drawing");
    const svg = drawing.querySelector("svg");
    const [left, right] = [Number(svg.dataset.left), Number(svg.dataset.right)];
    const spans = [...svg.querySelectorAll(".spans rect")];
    const tops = spans.map((span) => [Number(span.getAttribute("y")), Number(span.getAttribute("height"))]);
    const labels = [...svg.querySelectorAll(".labels text")].map((text) => [text, Number(text.dataset.span)]);
    const [turn, ticks] = [svg.querySelector(".turn"), svg.querySelector(".ticks")];
    const tickModel = ticks.firstElementChild.cloneNode(true);
    const whole = data.milliseconds;
    let [from, to] = [0, whole];

    const draw = () => {
      const scale = (right - left) / (to - from);
      const place = (ms) => left + (ms - from) * scale;
      spans.forEach((span, at) => {
        span.setAttribute("x", place(data.start[at]));
        span.setAttribute("width", data.width[at] * scale);
      });
      labels.forEach(([text, at]) => {
        const [begins, ends] = [Math.max(left, place(data.start[at])), Math.min(right, place(data.start[at] + data.width[at]))];
        text.setAttribute("x", (begins + ends) / 2);
        text.setAttribute("visibility", ends - begins >= LABEL ? "visible" : "hidden");
      });
      if (data.turn !== null) turn.setAttribute("transform", `translate(${place(data.turn)} 0)`);
      ticks.replaceChildren(...tickValues(from, to).map((value) => {
        const tick = tickModel.cloneNode(true);
        tick.setAttribute("transform", `translate(${place(value)} 0)`);
        tick.querySelector("text").textContent = String(value);
        return tick;
      }));
      where.textContent = `${from.toPrecision(4) / 1} to ${to.toPrecision(4) / 1} ms`;
    };
    const show = (first, extent) => {
      const least = Math.max(whole / 2000, 1e-4);
      const wide = Math.min(whole, Math.max(least, extent));
      from = Math.max(0, Math.min(first, whole - wide));
      to = from + wide;
      say(-1);
      draw();
    };
    const zoom = (factor, about = (from + to) / 2) => show(about - (about - from) * factor, (to - from) * factor);
    const timeAt = (event) => {
      const box = svg.getScreenCTM();
      return from + ((event.clientX - box.e) / box.a - left) * (to - from) / (right - left);
    };

    const tools = document.createElement("div");
    tools.className = "tools";
    const where = document.createElement("span");
    where.setAttribute("aria-live", "polite");
    for (const [name, text, act] of [
      ["zoom in", "+", () => zoom(0.5)],
      ["zoom out", "−", () => zoom(2)],
      ["whole epoch", "whole epoch", () => show(0, whole)],
    ]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      if (name !== text) button.setAttribute("aria-label", name);
      button.addEventListener("click", act);
      tools.append(button);
    }
    tools.append(where);
    figure.insertBefore(tools, drawing);

    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    figure.append(tip);
    const ring = document.createElementNS(SVG, "rect");
    ring.setAttribute("class", "ring");
    const say = (at, event) => {
      tip.hidden = at < 0;
      if (at < 0) {
        ring.remove();
        return;
      }
      tip.textContent = data.texts[at];
      const [x, width] = [Number(spans[at].getAttribute("x")), Number(spans[at].getAttribute("width"))];
      const begins = Math.max(left, x);
      Object.entries({ x: begins, y: tops[at][0], width: Math.max(0, Math.min(right, x + width) - begins), height: tops[at][1] })
        .forEach(([key, value]) => ring.setAttribute(key, value));
      svg.append(ring);
      const outer = figure.getBoundingClientRect();
      tip.style.left = `${Math.max(0, Math.min(event.clientX - outer.left + 12, outer.width - tip.offsetWidth))}px`;
      tip.style.top = `${event.clientY - outer.top + 18}px`;
    };

    let dragged = null;
    drawing.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button === 0) {
        dragged = { x: event.clientX, from };
        drawing.setPointerCapture(event.pointerId);
      }
    });
    drawing.addEventListener("pointermove", (event) => {
      if (dragged) {
        const moved = (event.clientX - dragged.x) / svg.getScreenCTM().a;
        show(dragged.from - moved * (to - from) / (right - left), to - from);
      } else {
        say(spans.indexOf(event.target), event);
      }
    });
    drawing.addEventListener("pointerup", () => { dragged = null; });
    drawing.addEventListener("pointerleave", () => say(-1));
    drawing.addEventListener("dblclick", (event) => zoom(0.5, timeAt(event)));
    drawing.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      zoom(event.deltaY > 0 ? 1.25 : 0.8, timeAt(event));
    }, { passive: false });
    drawing.addEventListener("keydown", (event) => {
      const act = {
        "+": () => zoom(0.5),
        "=": () => zoom(0.5),
        "-": () => zoom(2),
        0: () => show(0, whole),
        ArrowLeft: () => show(from - (to - from) / 5, to - from),
        ArrowRight: () => show(from + (to - from) / 5, to - from),
      }[event.key];
      if (!act || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      act();
    });
    draw();
  });
})();
