// Draws the notes of `props.value` and follows the player inside the element with the id `props.player`.
// Gradio runs this once for each roll, with `element`, `props` and `watch`.
const KEYBOARD = 46, AXIS = 20, PEDAL = 7, LEAST = 30;
const SECOND = 36, LEAST_SECONDS = 8; // pixels of a second, and how many of them are shown at least
const MILLISECONDS = 30; // between pictures: often enough for the eye, and the machine that draws may be the one that plays
const BLACK = new Set([1, 3, 6, 8, 10]);
const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120];
const LIGHT = {
  paper: "#ffffff", lane: "#f3f4f8", line: "#d6d9e4", ink: "#3f4354", missing: "#e4e6ee", pedal: "#c3c7d8",
  white: "#ffffff", black: "#2b2e3b", fresh: [79, 70, 229], given: [217, 119, 6], gap: "rgba(79, 70, 229, 0.10)",
  cursor: "#e11d48",
};
const DARK = {
  ...LIGHT, paper: "#15171f", lane: "#1c1f2a", line: "#313646", ink: "#b9bfd2", missing: "#262a36", pedal: "#4b5168",
  white: "#d9dce8", black: "#0c0d12", fresh: [129, 140, 248], given: [251, 191, 36], gap: "rgba(129, 140, 248, 0.16)",
};
const EMPTY = { seconds: 20, made: 0, notes: [], pedal: [], gap: [] };
const [view, map] = element.querySelectorAll("canvas");
const legend = element.querySelector(".legend");
let roll = EMPTY, low = 36, high = 96, time = -1, dirty = true, drawnAt = -MILLISECONDS;

const player = () => document.querySelector(`#${props.player} audio`);
const dark = () => document.body.classList.contains("dark");

// A shown roll, with the octaves that its notes need: at least five, so that most pieces never change theirs.
function take() {
  roll = { ...EMPTY, ...(props.value || {}) };
  low = 36;
  high = 96;
  for (const [, , pitch] of roll.notes) {
    low = Math.min(low, pitch - (pitch % 12));
    high = Math.max(high, pitch - (pitch % 12) + 12);
  }
  const given = roll.notes.filter(note => note[4]).length, fresh = roll.notes.length - given;
  const count = (number, word) => `${number} ${word}${number === 1 ? "note" : "notes"}`;
  const parts = given && fresh ? [count(given, "given "), count(fresh, "new ")] : [count(given + fresh, "")];
  legend.querySelector(".given").textContent = given ? parts[0] : "";
  legend.querySelector(".fresh").textContent = fresh ? parts[parts.length - 1] : "";
  view.setAttribute("aria-label", `Piano roll of ${roll.seconds.toFixed(1)} seconds: ${parts.join(", ")}`);
  element.dataset.notes = roll.notes.length;
  element.dataset.seconds = roll.seconds;
  dirty = true;
}

// Canvas in the pixels of the screen; gives its context in those of the page, with its size.
function sized(canvas) {
  const ratio = window.devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return [context, width, height];
}

// Which seconds the large view shows: all of a short piece, of a long one a window that moves with the cursor.
function shown(now) {
  const room = Math.max((view.clientWidth - KEYBOARD) / SECOND, LEAST_SECONDS);
  const span = roll.seconds < 1.2 * room ? roll.seconds : room;
  const first = Math.min(Math.max(now - span / 3, 0), roll.seconds - span);
  return [first, span];
}

const color = (rgb, strength) => `rgba(${rgb.join(", ")}, ${strength})`;
const sounds = ([onset, length], now) => onset <= now && now < onset + Math.max(length, 0.05);

function drawLanes(context, palette, left, width, height, keyHeight) {
  context.fillStyle = palette.paper;
  context.fillRect(left, 0, width, height);
  for (let pitch = low; pitch < high; pitch++) {
    const y = height - (pitch - low + 1) * keyHeight;
    if (BLACK.has(pitch % 12)) {
      context.fillStyle = palette.lane;
      context.fillRect(left, y, width, keyHeight);
    }
    if (pitch % 12 === 0) {
      context.fillStyle = palette.line;
      context.fillRect(left, y + keyHeight - 0.5, width, 1);
    }
  }
}

function drawKeyboard(context, palette, height, keyHeight, struck) {
  context.fillStyle = palette.white;
  context.fillRect(0, 0, KEYBOARD - 2, height);
  for (let pitch = low; pitch < high; pitch++) {
    const y = height - (pitch - low + 1) * keyHeight, black = BLACK.has(pitch % 12);
    if (black || struck.has(pitch)) {
      context.fillStyle = struck.get(pitch) || palette.black;
      context.fillRect(0, y, black ? KEYBOARD * 0.6 : KEYBOARD - 2, keyHeight);
    }
    if (pitch % 12 === 0 || pitch % 12 === 5) {
      context.fillStyle = palette.pedal;
      context.fillRect(0, y + keyHeight - 0.5, KEYBOARD - 2, 1);
    }
  }
  context.strokeStyle = palette.pedal;
  context.strokeRect(0.5, 0.5, KEYBOARD - 3, height - 1);
  context.font = "10px sans-serif";
  context.textBaseline = "bottom";
  context.textAlign = "right";
  context.fillStyle = "#555";
  for (let pitch = low; pitch < high; pitch += 12) {
    context.fillText(`C${pitch / 12 - 1}`, KEYBOARD - 4, height - (pitch - low) * keyHeight);
  }
}

function drawNote(context, palette, note, x, right, y, height, now) {
  const [, , , velocity, given] = note, on = sounds(note, now);
  context.fillStyle = color(given ? palette.given : palette.fresh, on ? 1 : 0.35 + 0.5 * velocity / 127);
  context.beginPath();
  context.roundRect(x, y - (on ? 1 : 0), Math.max(right - x - 0.5, 1.5), height + (on ? 2 : 0), 1.5);
  context.fill();
}

function drawView(palette, now) {
  const [context, width, total] = sized(view), height = total - AXIS - PEDAL;
  const plot = width - KEYBOARD, [first, span] = shown(now);
  const keyHeight = height / (high - low), x = seconds => KEYBOARD + (seconds - first) / span * plot;
  context.clearRect(0, 0, width, total);
  drawLanes(context, palette, KEYBOARD, plot, height, keyHeight);
  context.save();
  context.beginPath();
  context.rect(KEYBOARD, 0, plot, total);
  context.clip();
  context.fillStyle = palette.missing;
  context.fillRect(x(roll.made), 0, width, height + PEDAL);
  if (roll.gap.length) {
    context.fillStyle = palette.gap;
    context.fillRect(x(roll.gap[0]), 0, x(roll.gap[1]) - x(roll.gap[0]), height);
  }
  const step = STEPS.find(s => plot * s / span > 56) || 300;
  context.font = "11px sans-serif";
  context.textAlign = "center";
  context.textBaseline = "bottom";
  for (let mark = Math.ceil(first / step); mark * step <= first + span + 1e-6; mark++) {
    context.fillStyle = palette.line;
    context.fillRect(x(mark * step), 0, 1, height + PEDAL);
    context.fillStyle = palette.ink;
    // The last mark would be cut in half: it is written beside its line.
    const place = Math.min(Math.max(x(mark * step), KEYBOARD + 8), width - 12);
    context.fillText(`${+(mark * step).toFixed(1)} s`, place, total - 2);
  }
  context.fillStyle = palette.pedal;
  for (const [down, up] of roll.pedal) context.fillRect(x(down), height + 1, x(up) - x(down), PEDAL - 2);
  const struck = new Map();
  for (const note of roll.notes) {
    const [onset, length, pitch, , given] = note;
    if (onset > first + span || onset + length < first) continue;
    if (now > 0 && sounds(note, now)) struck.set(pitch, color(given ? palette.given : palette.fresh, 1));
    const y = height - (pitch - low + 1) * keyHeight;
    drawNote(context, palette, note, x(onset), x(onset + length), y, Math.max(keyHeight - 0.5, 1.5), now || -1);
  }
  context.fillStyle = palette.cursor;
  context.fillRect(Math.round(x(now)) - 1, 0, 2, height + PEDAL);
  context.restore();
  drawKeyboard(context, palette, height, keyHeight, struck);
}

function drawMap(palette, now) {
  const [context, width, height] = sized(map), plot = width - KEYBOARD;
  const x = seconds => KEYBOARD + seconds / roll.seconds * plot, [first, span] = shown(now);
  context.clearRect(0, 0, width, height);
  context.fillStyle = palette.lane;
  context.fillRect(KEYBOARD, 0, plot, height);
  context.fillStyle = palette.missing;
  context.fillRect(x(roll.made), 0, width, height);
  for (const [onset, length, pitch, , given] of roll.notes) {
    context.fillStyle = color(given ? palette.given : palette.fresh, 0.8);
    const y = (height - 2) * (1 - (pitch - low) / (high - low));
    context.fillRect(x(onset), y, Math.max(x(onset + length) - x(onset), 1), 1.5);
  }
  context.strokeStyle = palette.ink;
  context.strokeRect(x(first) + 0.5, 0.5, x(first + span) - x(first) - 1, height - 1);
  context.fillStyle = palette.cursor;
  context.fillRect(Math.round(x(now)) - 1, 0, 2, height);
}

function draw(stamp = 0) {
  // Without a frame, as in a window that is not shown, nothing is drawn and nothing is lost: the next one catches up.
  requestAnimationFrame(draw);
  if (stamp - drawnAt < MILLISECONDS) return;
  drawnAt = stamp;
  const audio = player(), now = audio ? Math.min(audio.currentTime, roll.seconds) : 0;
  if (view.clientWidth > LEAST && (dirty || now !== time)) {
    [dirty, time] = [false, now];
    const palette = dark() ? DARK : LIGHT;
    drawView(palette, now);
    drawMap(palette, now);
    element.dataset.time = now.toFixed(2);
  }
}

function seek(event, canvas) {
  const audio = player(), place = event.offsetX - KEYBOARD, plot = canvas.clientWidth - KEYBOARD;
  if (!audio || place < 0 || !audio.seekable.length) return;
  const [first, span] = canvas === map ? [0, roll.seconds] : shown(time);
  const last = audio.seekable.end(audio.seekable.length - 1);
  audio.currentTime = Math.min(first + place / plot * span, Math.max(last - 0.05, 0));
}

for (const canvas of [view, map]) canvas.addEventListener("click", event => seek(event, canvas));
new ResizeObserver(() => { dirty = true; }).observe(view);
new MutationObserver(() => { dirty = true; }).observe(document.body, { attributeFilter: ["class"] });
watch("value", take);
take();
draw();
