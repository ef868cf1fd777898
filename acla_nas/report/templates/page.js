"use strict";
(function () {
  // Two pictures, one above the other; the range says where the left one ends.
  for (const crop of document.querySelectorAll("[data-crop]")) {
    const pair = crop.querySelector(".pair"), range = crop.querySelector("input[type=range]");
    const above = pair.querySelector(".above"), divider = pair.querySelector(".divider");
    const move = (percent) => {
      range.value = percent;
      above.style.clipPath = `inset(0 0 0 ${range.value}%)`;
      divider.style.left = `${range.value}%`;
    };
    range.addEventListener("input", () => move(range.value));
    const follow = (event) => {
      const box = pair.getBoundingClientRect();
      move(Math.round(Math.min(100, Math.max(0, (event.clientX - box.left) / box.width * 100))));
    };
    pair.addEventListener("pointerdown", (event) => { pair.setPointerCapture(event.pointerId); follow(event); });
    pair.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
    for (const select of crop.querySelectorAll("select")) {
      select.addEventListener("change", () => {
        const chosen = crop.querySelector(`[data-picture="${select.value}"]`);
        const shown = pair.querySelector("." + select.dataset.side);
        shown.src = chosen.src;
        shown.alt = chosen.alt;
      });
    }
  }

  // The key explorer.
  const source = document.getElementById("keys-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const littleEndian = (text, Type, get) => {
    const view = new DataView(bytes(text)), values = new Type(view.byteLength / 2);
    for (let i = 0; i < values.length; i++) values[i] = view[get](2 * i, true);
    return values;
  };
  for (const module of data.modules) {
    module.offsets = littleEndian(module.offsets, Int16Array, "getInt16");
    module.weights = littleEndian(module.weights, Uint16Array, "getUint16");
  }
  const weightOf = (code) => code ? Math.pow(data.smallest, 1 - (code - 1) / 65534) : 0;

  // The keys of one module in one of its references, for a query pixel (x, y) of the image.
  const keysOf = (module, reference, x, y) => {
    const sx = data.width / module.width, sy = data.height / module.height;
    const qx = Math.min(module.width - 1, Math.floor(x / sx)), qy = Math.min(module.height - 1, Math.floor(y / sy));
    const at = ((qy * module.width + qx) * module.references.length + reference) * module.keys;
    const keys = [];
    for (let k = at; k < at + module.keys; k++) {
      const dx = module.offsets[2 * k] / data.steps, dy = module.offsets[2 * k + 1] / data.steps;
      const weight = weightOf(module.weights[k]);
      keys.push({ dx, dy, weight, open: module.weights[k] > 0, x: (qx + 0.5 + dx) * sx, y: (qy + 0.5 + dy) * sy });
    }
    return keys;
  };

  const ramp = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const colour = (t) => {
    const at = Math.min(Math.max(t, 0), 1) * (ramp.length - 1), i = Math.min(Math.floor(at), ramp.length - 2);
    return `rgb(${ramp[i].map((v, c) => Math.round(v + (at - i) * (ramp[i + 1][c] - v))).join(",")})`;
  };

  const picture = new Image();
  const canvas = document.getElementById("image"), said = document.getElementById("said");
  const showClosed = document.getElementById("closed"), near = document.getElementById("near");
  let query = { x: data.query[0], y: data.query[1] };

  const fit = (target, css) => {
    target.width = css * 2;
    target.height = Math.round(css * 2 * data.height / data.width);
    target.style.width = css + "px";
  };
  fit(canvas, 384);

  // Draw a part of the image, (left, top) and width in its pixels, and keys on it.
  const draw = (target, part, keys, largest, size) => {
    const context = target.getContext("2d"), scale = target.width / part.width;
    context.imageSmoothingEnabled = false;
    context.fillStyle = "#30363d";
    context.fillRect(0, 0, target.width, target.height);
    context.drawImage(picture, -part.left * scale, -part.top * scale, data.width * scale, data.height * scale);
    context.fillStyle = "rgba(255,255,255,.25)";
    context.fillRect(0, 0, target.width, target.height);
    for (const key of [...keys].sort((a, b) => a.weight - b.weight)) {
      const x = (key.x - part.left) * scale, y = (key.y - part.top) * scale;
      if (key.open) {
        context.beginPath();
        context.arc(x, y, size, 0, 2 * Math.PI);
        context.fillStyle = colour(1 + Math.log10(key.weight / largest) / 3);
        context.fill();
        context.lineWidth = 2;
        context.strokeStyle = "#fff";
        context.stroke();
      } else if (showClosed.checked) {
        context.lineWidth = 3;
        context.strokeStyle = "#cf222e";
        context.beginPath();
        context.moveTo(x - size * .7, y - size * .7); context.lineTo(x + size * .7, y + size * .7);
        context.moveTo(x + size * .7, y - size * .7); context.lineTo(x - size * .7, y + size * .7);
        context.stroke();
      }
    }
    const x = (query.x + 0.5 - part.left) * scale, y = (query.y + 0.5 - part.top) * scale;
    for (const [line, style] of [[7, "#000"], [3, "#39ff14"]]) {
      context.lineWidth = line;
      context.strokeStyle = style;
      context.strokeRect(x - scale / 2, y - scale / 2, scale, scale);  // the pixel itself
      if (scale > 16) continue;
      context.beginPath();
      for (const [a, b] of [[-1, 0], [1, 0], [0, -1], [0, 1]]) {
        context.moveTo(x + a * (scale / 2 + 14), y + b * (scale / 2 + 14));
        context.lineTo(x + a * (scale / 2 + 26), y + b * (scale / 2 + 26));
      }
      context.stroke();
    }
  };

  // One panel for each reference of each module.
  const modules = document.getElementById("modules"), panels = [];
  for (const module of data.modules) {
    const part = document.createElement("div");
    part.className = "module";
    const heading = document.createElement("h3");
    heading.textContent = `Module at position ${module.position} (${module.path}): ` +
      `${(100 * module.open).toFixed(1)} % of its keys in this image are open`;
    const row = document.createElement("div");
    row.className = "panels";
    module.references.forEach((reference, r) => {
      const figure = document.createElement("figure"), target = document.createElement("canvas");
      const caption = document.createElement("figcaption"), details = document.createElement("details");
      figure.className = "panel";
      target.setAttribute("role", "img");
      fit(target, 192);
      const summary = document.createElement("summary"), table = document.createElement("table");
      summary.textContent = "weights";
      details.append(summary, table);
      figure.append(target, caption, details);
      row.append(figure);
      panels.push({ module, r, reference, target, caption, details, table });
    });
    part.append(heading, row);
    modules.append(part);
  }

  const list = (table, keys) => {
    table.textContent = "";
    const line = (cells, kind) => {
      const row = table.insertRow();
      for (const cell of cells) {
        const part = document.createElement(kind);
        part.textContent = cell;
        row.append(part);
      }
    };
    line(["dx", "dy", "weight"], "th");
    for (const key of [...keys].sort((a, b) => b.weight - a.weight)) {
      line([key.dx.toFixed(2), key.dy.toFixed(2), key.open ? key.weight.toPrecision(3) : "closed"], "td");
    }
  };

  const show = () => {
    const whole = { left: 0, top: 0, width: data.width };
    let open = 0, count = 0;
    const all = [];
    const found = new Map(panels.map((panel) => [panel, keysOf(panel.module, panel.r, query.x, query.y)]));
    for (const module of data.modules) {
      const own = panels.filter((panel) => panel.module === module);
      const keys = own.flatMap((panel) => found.get(panel));
      const largest = Math.max(...keys.map((key) => key.weight), data.smallest);
      const reach = Math.max(3, ...keys.map((k) => Math.max(Math.abs(k.x - query.x - .5), Math.abs(k.y - query.y - .5)))) + 1;
      const side = Math.min(2 * reach, data.width);
      const tall = side * data.height / data.width;
      const part = near.checked && side < data.width
        ? { left: query.x + .5 - side / 2, top: query.y + .5 - tall / 2, width: side } : whole;
      for (const panel of own) {
        const here = found.get(panel), isOpen = here.filter((key) => key.open);
        const outside = isOpen.filter((k) => k.x < 0 || k.y < 0 || k.x > data.width || k.y > data.height).length;
        const share = here.reduce((sum, key) => sum + key.weight, 0);
        draw(panel.target, part, here, largest, 9);
        panel.caption.textContent = `reads position ${panel.reference.position} (${panel.reference.path}): ` +
          `${isOpen.length} of ${here.length} keys open${outside ? `, ${outside} outside` : ""}, ` +
          `${(100 * share).toFixed(1)} % of the weight`;
        panel.target.setAttribute("aria-label", panel.caption.textContent);
        if (panel.details.open) list(panel.table, here);
        open += isOpen.length;
        count += here.length;
      }
      all.push(...keys);
    }
    draw(canvas, whole, all, Math.max(...all.map((key) => key.weight), data.smallest), 7);
    said.textContent = `Pixel (${query.x + data.corner[0]}, ${query.y + data.corner[1]}) of ${data.name}: ` +
      `${open} of ${count} keys survived the gates of ${data.modules.length} module${data.modules.length > 1 ? "s" : ""}.`;
  };

  const go = (x, y) => {
    query = { x: Math.min(data.width - 1, Math.max(0, x)), y: Math.min(data.height - 1, Math.max(0, y)) };
    show();
  };
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect(), border = canvas.clientLeft;
    go(Math.floor((event.clientX - box.left - border) / canvas.clientWidth * data.width),
      Math.floor((event.clientY - box.top - border) / canvas.clientHeight * data.height));
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    go(query.x + step[0], query.y + step[1]);
  });
  showClosed.addEventListener("change", show);
  near.addEventListener("change", show);
  for (const panel of panels) panel.details.addEventListener("toggle", show);
  picture.onload = show;
  picture.src = data.picture;
})();
