"use strict";
// The controls of a served page: every move is a question to the server; the newest one counts.
(() => {
  const data = JSON.parse(document.getElementById("live-data").textContent);
  const byId = (name) => document.getElementById(`live-${name}`);
  const state = byId("state");
  const tiles = byId("tiles");
  const rate = byId("rate");
  const price = byId("price");
  const epochs = byId("epochs");
  const WAIT = 300;

  // A slider of 0 to 1000 over decades; 0 is the link's own rate.
  const gbit = () => {
    if (!rate || Number(rate.value) === 0) return null;
    const { least, most } = data.rate;
    return Number((least * (most / least) ** (Number(rate.value) / 1000)).toPrecision(3));
  };
  const toSlider = (value) => Math.round(1000 * Math.log(value / data.rate.least) / Math.log(data.rate.most / data.rate.least));
  const spoken = (value) => (value >= 1 ? `${value} Gbit/s` : `${Number((1000 * value).toPrecision(3))} Mbit/s`);

  const question = () => {
    const inputs = {};
    data.controls.forEach((control) => {
      const at = byId(control.name).value;
      if (at !== "rate") inputs[control.name] = control.values[Number(at)];
    });
    const asked = { inputs, epochs: Number(epochs.value) };
    const own = gbit();
    if (own !== null) asked.rate_gbit = own;
    if (price && price.value !== "") asked.price_per_hour = Number(price.value);
    return asked;
  };

  const showControls = () => {
    data.controls.forEach((control) => {
      const field = byId(control.name);
      const text = field.value === "rate" ? "" : control.texts[Number(field.value)];
      byId(`${control.name}-value`).textContent = control.slider ? text : "";
      if (control.slider) field.setAttribute("aria-valuetext", text);
    });
    const [bits, method] = [byId("bits"), byId("method")];
    if (bits && method) bits.disabled = data.controls.find((control) => control.name === "method").values[Number(method.value)] !== "adaqp";
    if (!rate) return;
    const text = gbit() === null ? "as the link" : spoken(gbit());
    byId("rate-value").textContent = text;
    rate.setAttribute("aria-valuetext", text);
  };

  // Where the answer lies in the Pareto figure of the report.
  const drawing = document.querySelector("#pareto svg");
  const here = document.createElementNS("http://www.w3.org/2000/svg", "path");
  here.setAttribute("class", "here");
  const place = (axis, value) => {
    const along = axis.log ? Math.log : (each) => each;
    const [low, high] = axis.data.map(along);
    const share = Math.min(1, Math.max(0, (along(value) - low) / (high - low)));
    return axis.pixels[0] + share * (axis.pixels[1] - axis.pixels[0]);
  };
  const mark = (forecast) => {
    here.remove();
    const height = forecast && data.scale && forecast[data.scale.against];
    if (!drawing || !height) return;
    const x = place(data.scale.x, forecast.training_seconds);
    const y = place(data.scale.y, height);
    here.setAttribute("d", `M${x - 9} ${y}H${x + 9}M${x} ${y - 9}V${y + 9}`);
    drawing.append(here);
  };

  const say = (text, kind) => {
    state.textContent = text;
    state.className = kind;
  };
  const show = (answer, milliseconds) => {
    tiles.classList.remove("waiting");
    const texts = answer.texts || {};
    tiles.querySelectorAll("[data-text]").forEach((field) => { field.textContent = texts[field.dataset.text] || (field.classList.contains("value") ? "–" : ""); });
    const parts = answer.parts || [];
    document.querySelectorAll("#live-parts .part").forEach((part, at) => { part.style.width = `${parts[at] ? 100 * parts[at].share : 0}%`; });
    byId("parts").setAttribute("aria-label", `shares of an epoch: ${answer.parts_text || "none"}`);
    document.querySelectorAll("#live .share").forEach((field, at) => { field.textContent = parts[at] ? parts[at].text : "–"; });
    const beyond = answer.extrapolated || [];
    byId("extrapolated").textContent = beyond.length ? `Beyond what was calibrated: ${beyond.join("; ")}.` : "";
    say(answer.reason ? `${answer.name}: ${answer.reason}` : `${answer.name}: meets every filter`, answer.feasible ? "met" : "missed");
    state.dataset.milliseconds = milliseconds.toFixed(1);
    mark(answer.forecast);
  };

  let asking = false;
  let again = false;
  let timer = 0;
  const ask = async () => {
    clearTimeout(timer);
    if (asking) {
      again = true;
      return;
    }
    asking = true;
    again = false;
    const start = performance.now();
    try {
      const response = await fetch("api/forecast", {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question()),
      });
      const answer = await response.json();
      if (response.ok && answer.preparing) {
        tiles.classList.add("waiting");
        say(answer.preparing, "");
        timer = setTimeout(ask, WAIT);
      } else if (response.ok) show(answer, performance.now() - start);
      else {
        tiles.classList.add("waiting");
        say(answer.error, "");
      }
    } catch (error) {
      tiles.classList.add("waiting");
      say("no answer: is halocast serve still running?", "");
    }
    asking = false;
    if (again) ask();
  };

  const link = data.controls.find((control) => control.name === data.link);
  const device = data.controls.find((control) => control.name === "device");
  byId("controls").addEventListener("input", (event) => {
    if (link && event.target === byId(link.name)) {
      rate.value = event.target.value === "rate" ? toSlider(data.rate.start) : 0;
    }
    if (link && event.target === rate) {
      const field = byId(link.name);
      if (Number(rate.value) > 0) field.value = "rate";
      else if (field.value === "rate") field.value = String(link.start);
    }
    if (device && price && event.target === byId("device")) {
      const known = data.prices[device.values[Number(event.target.value)]];
      price.value = known === undefined ? "" : known;
    }
    showControls();
    ask();
  });
  byId("controls").addEventListener("reset", () => setTimeout(() => { showControls(); ask(); }, 0));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  showControls();
  ask();
})();
