// Mouse, pen, fingers and arrow keys on the canvas, as strokes of the tools or as zoom, pan, window and level.
//   left button, pen, one finger: the tool; with Ctrl, right button or the pen's other end: erase
//   Shift and drag: window and level; middle button, Space and drag, two fingers: pan; wheel, two fingers: zoom;
//   Ctrl and wheel: size of the brush
// Once a pen was seen fingers only zoom and pan, so that a resting hand draws nothing.
import { AWAY } from "./tools.js";

const ERASER = 32; // of a pen, in `buttons`

export function listen(view, tools, setDisplay, resize) {
  const { canvas } = view, fingers = new Map();
  let drag = null, pen = false, keys = null, space = null;

  const place = (event) => ({ x: event.clientX, y: event.clientY });
  const middle = () => {
    const [a, b] = [...fingers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, apart: Math.hypot(a.x - b.x, a.y - b.y) };
  };
  const circle = (event) => {
    view.cursor = { ...view.point(event), radius: ["brush", "eraser"].includes(tools.tool) ? tools.size / 2 : 0 };
    view.cursor.erase = tools.gesture ? !tools.gesture.value : event.ctrlKey || AWAY.includes(tools.tool);
    view.draw();
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (!tools.mask || (drag && event.pointerType !== "touch")) return;
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    event.preventDefault();
    if (event.pointerType === "pen") pen = true;
    if (event.pointerType === "touch") {
      fingers.set(event.pointerId, place(event));
      if (fingers.size === 2) {
        tools.cancel();
        drag = { pinch: middle() };
        return;
      }
      if (pen || fingers.size > 2) return void (drag = drag?.pinch ? drag : { pan: place(event) });
    }
    if (space) space.panned = true;
    if (event.button === 1 || space) drag = { pan: place(event) };
    else if (event.shiftKey) drag = { display: view.display, from: place(event) };
    else {
      drag = "tool";
      tools.begin(view.point(event), event.ctrlKey || event.button === 2 || Boolean(event.buttons & ERASER));
      circle(event);
    }
  });

  canvas.addEventListener("pointermove", (event) => {
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, place(event));
    if (event.pointerType !== "touch") circle(event);
    if (drag === "tool") {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const part of events.length ? events : [event]) tools.move(view.point(part));
    } else if (drag?.pinch && fingers.size === 2) {
      const now = middle(), before = drag.pinch, { left, top } = canvas.getBoundingClientRect();
      view.pan(now.x - before.x, now.y - before.y);
      view.zoom(now.apart / Math.max(1, before.apart), now.x - left, now.y - top);
      drag.pinch = now;
    } else if (drag?.pan) {
      view.pan(event.clientX - drag.pan.x, event.clientY - drag.pan.y);
      drag.pan = place(event);
    } else if (drag?.display) {
      const window = Math.max(8, drag.display.window + event.clientX - drag.from.x);
      setDisplay({ window, level: drag.display.level + event.clientY - drag.from.y });
    }
  });

  const release = (event) => {
    fingers.delete(event.pointerId);
    if (fingers.size) return;
    if (drag === "tool") event.type === "pointerup" ? tools.end() : tools.cancel();
    drag = null;
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => {
    if (drag !== "tool") view.cursor = null;
    view.draw();
  });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const { left, top } = canvas.getBoundingClientRect();
      if (event.ctrlKey && Math.abs(event.deltaY) >= 10) return resize(event.deltaY > 0 ? 1 / 1.2 : 1.2); // less: two fingers of a trackpad
      view.zoom(Math.exp(-event.deltaY / (event.ctrlKey ? 100 : 400)), event.clientX - left, event.clientY - top);
    },
    { passive: false },
  );

  // The keyboard's own pointer: arrows move it, Space puts it down and lifts it.
  return {
    arrow(dx, dy, fine) {
      const step = fine ? 1 : Math.max(1, tools.size / 4), { width, height } = tools.mask;
      const from = view.cursor ?? { x: width / 2, y: height / 2 };
      const to = { x: Math.min(width, Math.max(0, from.x + dx * step)), y: Math.min(height, Math.max(0, from.y + dy * step)) };
      view.cursor = { ...to, radius: tools.size / 2 };
      if (keys) tools.move(to);
      view.draw();
    },
    // Space is held or let go: the image follows the pointer meanwhile; a short press puts the pen down, or lifts it.
    space(down, away = false) {
      if (down) space ??= { panned: false };
      else if (space) {
        const { panned } = space;
        space = null;
        if (!panned && !away) this.press(false);
      }
      canvas.classList.toggle("pan", Boolean(space));
    },
    press(erase) {
      if (drag || !tools.mask) return;
      view.cursor ??= { x: tools.mask.width / 2, y: tools.mask.height / 2, radius: tools.size / 2 };
      const down = keys && tools.gesture; // another image ends a stroke too
      down ? tools.end() : tools.begin(view.cursor, erase);
      keys = !down;
      view.draw();
    },
    lift() {
      if (keys) tools.cancel();
      keys = null;
    },
  };
}
