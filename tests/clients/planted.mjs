/**
 * node planted.mjs DIST BUNDLE: replay the golden batches of BUNDLE with the built files of `examples/node` in DIST, once by its
 * entry for users and once by each of some clients that put rows together wrongly. Prints the findings of each, by its mistake.
 */
const [dist, folder] = process.argv.slice(2);
const modules = ["folder.js", "core/bundle.js", "core/service.js", "core/goldenBatches.js", "core/runners.js", "core/rows.js", "core/answers.js"];
const [{ Folder }, { Bundle }, { Service }, { replayBatches }, { FedAdapters }, { joined, taken }, { answerTo, ownClasses }] =
  await Promise.all(modules.map((path) => import(`${dist}/${path}`)));

const bundle = await Bundle.open(new Folder(folder));
const service = new Service(bundle);
const fed = await FedAdapters.open(bundle);

/** Three tokens of padding before those of the row, hidden by the mask. */
async function paddedBefore({ inputs, adapter, context = null }) {
  const padding = (tensor) => {
    const found = taken(tensor, [0, 0, 0], 1);
    found.data.fill(0n);
    return joined([found, tensor], 1);
  };
  const padded = Object.fromEntries(Object.entries(inputs).map(([name, tensor]) => [name, padding(tensor)]));
  const { outputs, heads } = await fed.run(padded, adapter);
  const own = Object.entries(outputs).map(([name, tensor]) => {
    const row = name === heads[0].output ? ownClasses(tensor, 0) : tensor;
    return [name, row.dims.length < 3 ? row : taken(row, [...Array(row.dims[1] - 3).keys()].map((at) => at + 3), 1)];
  });
  return answerTo(heads[0], Object.fromEntries(own), null, context);
}

function withoutTypes({ inputs, ...row }) {
  const types = taken(inputs.token_type_ids, [0]);
  types.data.fill(0n);
  return { ...row, inputs: { ...inputs, token_type_ids: types } };
}

/** The answers to the rows of each adapter in reverse order. */
function inAnotherOrder(rows, answers) {
  return rows.map(({ adapter }, at) => {
    const places = rows.flatMap((row, place) => (row.adapter === adapter ? [place] : []));
    return answers[places.at(-1 - places.indexOf(at))];
  });
}

const clients = {
  none: (rows) => service.answer(rows),
  "padding before the tokens": (rows) => Promise.all(rows.map(paddedBefore)),
  "rows of one adapter in another order": async (rows) => inAnotherOrder(rows, await service.answer(rows)),
  "token types of 0": (rows) => service.answer(rows.map(withoutTypes)),
  "the whole row as context": (rows) => service.answer(rows.map((row) => (row.context ? { ...row, context: row.context.map(() => 1) } : row))),
  "no context": (rows) => service.answer(rows.map(({ context, ...row }) => row)),
};

const found = {};
for (const [mistake, answer] of Object.entries(clients)) found[mistake] = await replayBatches(bundle, answer);
console.log(JSON.stringify(found));
