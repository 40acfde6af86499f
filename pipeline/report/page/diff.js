"use strict";
// What differs between two texts, by word.
const LARGEST_TABLE = 4e6; // cells of the table of common words; beyond it the middle counts as replaced

// Pieces of both texts as [{text, differs}], joined where neighbours are alike.
function differences(left, right) {
  const a = left.match(/\s+|[^\s\w]|\w+/gu) ?? [], b = right.match(/\s+|[^\s\w]|\w+/gu) ?? [];
  let start = 0, end = 0;
  while (start < Math.min(a.length, b.length) && a[start] === b[start]) start++;
  const room = Math.min(a.length, b.length) - start;
  while (end < room && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const [inA, inB] = common(a.slice(start, a.length - end), b.slice(start, b.length - end));
  const isShared = (words, inside) => words.map((_, i) =>
    i < start || i >= words.length - end || inside[i - start]);
  return [pieces(a, isShared(a, inA)), pieces(b, isShared(b, inB))];
}

// Which words of each list belong to their longest common subsequence.
function common(a, b) {
  const inA = new Array(a.length).fill(false), inB = new Array(b.length).fill(false);
  if (a.length * b.length > LARGEST_TABLE) return [inA, inB];
  const width = b.length + 1, longest = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      longest[i * width + j] = a[i] === b[j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) inA[i++] = inB[j++] = true;
    else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++;
    else j++;
  }
  return [inA, inB];
}

function pieces(words, shared) {
  const found = [];
  words.forEach((word, i) => {
    const last = found.at(-1);
    if (last && last.differs === !shared[i]) last.text += word;
    else found.push({ text: word, differs: !shared[i] });
  });
  return found;
}
