// From values to pixels, and which values to write beside an axis. Pure functions.

function roundStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].find((factor) => factor * power >= least * (1 - 1e-9)) * power;
}

function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const step = roundStep((high - low) / count);
  const found = [];
  for (let place = Math.ceil(low / step - 1e-9); place <= Math.floor(high / step + 1e-9); place++) found.push(Number((place * step).toPrecision(12)));
  return found;
}

function logTicks(low, high, count) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const factor of [1, 2, 5]) {
      const value = factor * 10 ** power;
      if (value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) found.push(Number(value.toPrecision(3)));
    }
  }
  const tens = found.filter((value) => String(value.toExponential()).startsWith("1e"));
  const kept = found.length <= count + 3 ? found : tens.length >= 2 ? tens : ticks(low, high, count).filter((value) => value > 0);
  const every = Math.ceil(kept.length / (count + 3));
  return kept.filter((_, place) => place % every === 0);
}

// A function from [low, high] to [from, to].
function scale(low, high, from, to, log) {
  const move = log ? Math.log10 : (value) => value;
  const [a, b] = [move(low), move(high)];
  return (value) => from + ((move(value) - a) / (b - a || 1)) * (to - from);
}

// Exponential moving average as in TensorBoard: weight of the past in [0, 1), without bias at the start.
function smooth(values, weight) {
  let [sum, total] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    sum = sum * weight + (1 - weight) * value;
    total = total * weight + (1 - weight);
    return sum / total;
  });
}

// Place of the bucket that holds a step or is nearest to it.
function nearest(curve, step) {
  let [low, high] = [0, curve.first.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (curve.first[middle] <= step) low = middle;
    else high = middle - 1;
  }
  const next = low + 1;
  if (next < curve.first.length && step > curve.last[low] && curve.first[next] - step < step - curve.last[low]) return next;
  return low;
}
