// What the file says of positions: in words, and as a picture drawn to scale from its numbers.

import { capitalized, el, number, svg, tokens } from "./dom.js";

const WIDTH = 560;
const EDGE = 14;
const INNER = WIDTH - 2 * EDGE;
const TOP = 46;
const BOTTOM = 152;
const LINES = 16;

const KINDS = {
  none: "unscaled",
  linear: "linear (Position Interpolation)",
  yarn: "YaRN",
  llama3: "Llama 3's",
  longrope: "LongRoPE",
  learned: "a learned table",
  alibi: "ALiBi",
};

/** The panel's content; `used` is how many tokens the conversation takes. */
export function positionsPanel(about, used) {
  const { rope } = about;
  const trained = rope.original_context_length;
  const rows = [
    ["Rope scaling", KINDS[rope.kind] ?? rope.kind],
    ["Factor", `${+rope.factor.toPrecision(6)}`],
    ["Base", rope.base ? number(rope.base) : "none"],
    ["Original window", tokens(trained)],
    ["Extended window", tokens(rope.context_length)],
    ["Window of this server", tokens(about.context_length)],
  ];
  const notes = [...about.position_notes];
  if (rope.overridden) notes.push("These values were given when the server was started; the file's own are others.");
  return [
    el("p", { className: "lead" }, words(rope)),
    picture(rope, about.context_length, used),
    el("dl", { className: "facts" }, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el("p", { className: "fine" }, capitalized(`${rope.explained}.`)),
    ...notes.map((note) => el("p", { className: "fine" }, capitalized(note))),
    el("p", { className: "fine" }, weights(about)),
  ];
}

function words(rope) {
  const [trained, extended] = [number(rope.original_context_length), number(rope.context_length)];
  const factor = +rope.factor.toPrecision(4);
  if (rope.kind === "linear")
    return (
      `The model learned to tell ${trained} positions apart. This file divides every position by ${factor}, so ` +
      `that ${extended} tokens fall between the positions it knows, instead of past their end.`
    );
  if (rope.kind === "yarn" || rope.kind === "llama3")
    return (
      `The model learned ${trained} positions. This file divides the slow rotations, which tell far from near, ` +
      `by ${factor}, and leaves the fast ones, which tell neighbours apart: so ${extended} tokens fit.`
    );
  if (rope.kind === "longrope")
    return `The model learned ${trained} positions; each of its rotations is divided by a number of its own, so that ${extended} tokens fit.`;
  if (rope.kind === "none")
    return `Positions are read as they are: the model learned ${extended} of them, and this file stretches nothing.`;
  return `Positions are no rotations here. The file's window is ${extended} tokens.`;
}

/** Above, the positions of the text; below, where the model sees them, at the same scale. */
function picture(rope, window, used) {
  const longest = rope.context_length;
  const divides = ["linear", "yarn", "llama3"].includes(rope.kind) ? rope.factor : 1;
  const isUneven = ["yarn", "llama3"].includes(rope.kind);
  const x = (position) => EDGE + (INNER * position) / longest;
  const seen = (position) => x(position / divides);
  const here = Math.min(used, longest);
  const trained = rope.original_context_length;

  const rays = Array.from({ length: LINES + 1 }, (_, index) => (longest * index) / LINES);
  const made = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} 204`, role: "img", class: "picture", "aria-labelledby": "picture-title" },
    titled(
      "picture-title",
      `${number(longest)} positions of the text above; below, at the same scale, the ${number(trained)} the model ` +
        `was trained at, and where the ones above fall. This conversation takes ${number(used)}.`,
    ),
    svg("rect", { x: x(0), y: BOTTOM, width: x(trained) - x(0), height: 12, rx: 3, class: "trained" }),
    svg("rect", { x: x(0), y: TOP - 12, width: INNER, height: 12, rx: 3, class: "text" }),
    svg("rect", { x: x(0), y: TOP - 12, width: Math.max(x(here) - x(0), 0), height: 12, rx: 3, class: "used" }),
    svg("rect", { x: x(0), y: BOTTOM, width: Math.max(seen(here) - x(0), 0), height: 12, rx: 3, class: "used" }),
    ...(isUneven
      ? rays
          .filter((position) => position <= trained)
          .map((position) => ray(x(position), x(position), "ray fast"))
      : []),
    ...rays.map((position) => ray(x(position), seen(position), position <= here ? "ray used" : "ray")),
    label(x(0), TOP - 22, "the text"),
    label(x(longest), TOP - 22, tokens(longest), "end"),
    label(x(0), BOTTOM + 30, "what the model learned"),
    ...(trained < longest && x(longest) - x(trained) > 150
      ? [
          label(x(trained) + 8, BOTTOM + 10, `${number(trained)} positions`),
          svg("line", { x1: x(trained) + 110, x2: x(longest), y1: BOTTOM + 6, y2: BOTTOM + 6, class: "unknown" }),
          label(x(longest), BOTTOM + 30, "never seen in training", "end"),
        ]
      : [label(x(longest), BOTTOM + 30, `${number(trained)} positions`, "end")]),
  );
  if (window < longest) {
    made.append(svg("line", { x1: x(window), x2: x(window), y1: TOP - 16, y2: TOP + 4, class: "limit" }));
  }
  const told =
    used > 0 && divides > 1
      ? `This conversation ends at position ${number(used)}, which ${isUneven ? "the slow rotations see" : "the model sees"} as ${number(used / divides)}.`
      : used > 0
        ? `This conversation takes ${number(used)} of them.`
        : "Each line is one position of the text, and where it falls.";
  const limit = window < longest ? " The mark above is where this server's window ends." : "";
  return el("figure", {}, made, el("figcaption", {}, told + limit));
}

const titled = (id, text) => {
  const made = svg("title", { id });
  made.textContent = text;
  return made;
};

const ray = (from, to, kind) => svg("line", { x1: from, y1: TOP, x2: to, y2: BOTTOM, class: kind });

function label(x, y, text, anchor = "start") {
  const made = svg("text", { x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}

function weights(about) {
  const types = Object.keys(about.types).join(", ");
  const size = `${(about.bytes / 2 ** 20).toLocaleString("en-US", { maximumFractionDigits: 0 })} MiB`;
  return `${about.name ?? about.model}: ${about.architecture}, ${(about.parameters / 1e6).toLocaleString("en-US", { maximumFractionDigits: 0 })} million parameters, ${size} (${types}); answers at once: ${about.slots}.`;
}
