// The rules of docs/tokenizer.md once more, in another language and in another style: regular expressions.
// Reads {"asset": ..., "texts": [...]} from stdin; prints [{"tokens": [...], "ids": [...]}, ...].
import { readFileSync } from "node:fs";

const { asset, texts } = JSON.parse(readFileSync(0, "utf8"));
const DROPPED = /[\u200d\ufe00-\ufe0f\u{1f3fb}-\u{1f3ff}]/gu;
const SYMBOL = "[\\u2190-\\u2bff\\u{1f000}-\\u{1faff}]";
const OTHER = "(?![\\u0080-\\u00bf\\u00d7\\u00f7\\u2000-\\u206f\\u3000-\\u303f]|" + SYMBOL + ")[\\u0080-\\u{10ffff}]";
const LETTER = "(?:[A-Za-z]|" + OTHER + ")";
const quoted = (s) => s.replace(/[.*+?^${}()|[\]\\\/]/g, "\\$&");
const faces = Object.keys(asset.emoticons)
  .sort((a, b) => [...b].length - [...a].length)
  .map((face) => quoted(face) + (/[A-Za-z0-9_]$/.test(face) ? "(?![A-Za-z0-9_])" : ""));
const rules = [
  ["url", "(?:[Hh][Tt][Tt][Pp][Ss]?:\\/\\/|[Ww][Ww][Ww]\\.)[^\\t\\n\\v\\f\\r ]*"],
  ["word", LETTER + "(?:['\\u2018\\u2019]?" + LETTER + ")*"],
  ["number", "[0-9]+"],
  ["user", "@[A-Za-z0-9_]+"],
  ["face", faces.join("|") || "(?!)"],
  ["marks", "!+|\\?+"],
  ["symbol", SYMBOL],
];
const pattern = new RegExp(rules.map(([name, rule]) => `(?<${name}>${rule})`).join("|"), "gu");
const utf8 = new TextEncoder();

function tokens(text) {
  const clean = new TextDecoder("utf-8", { ignoreBOM: true }).decode(utf8.encode(text)).replace(DROPPED, "");
  return [...clean.matchAll(pattern)].map(({ groups }) => {
    if (groups.url) return "<url>";
    if (groups.number) return "<number>";
    if (groups.user) return "<user>";
    if (groups.face) return asset.emoticons[groups.face];
    if (groups.marks) return groups.marks.slice(0, 2);
    if (groups.symbol) return groups.symbol;
    const lower = groups.word.replace(/['\u2018\u2019]/g, "").replace(/[A-Z]/g, (c) => c.toLowerCase());
    return [...lower.replace(/(.)\1{2,}/gsu, "$1$1")].slice(0, 32).join("");
  });
}

function id(feature) {
  let hash = 0x811c9dc5n;
  for (const byte of utf8.encode(feature)) hash = ((hash ^ BigInt(byte)) * 0x01000193n) % 0x100000000n;
  return 1 + Number(hash % BigInt(asset.buckets - 1));
}

function ids(found) {
  const features = found.flatMap((token, i) => (asset.pairs && i ? [found[i - 1] + " " + token, token] : [token]));
  const kept = features.slice(0, asset.length).map(id);
  return [...kept, ...Array(asset.length - kept.length).fill(0)];
}

console.log(JSON.stringify(texts.map((text) => ({ tokens: tokens(text), ids: ids(tokens(text)) }))));
