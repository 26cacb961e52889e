/**
 * node kinds.mjs EXAMPLE BUNDLE NAME…: choose these adapters on the page of `examples/browser`, in EXAMPLE, one after the
 * other; prints for each whether there is a second field, and the answer that is shown.
 */
const [example, bundle, ...names] = process.argv.slice(2);
const { withPage } = await import(`${example}/chromium.mjs`);

function shown() {
  const block = document.querySelector("section");
  return { second: !document.getElementById("pair").hidden, answer: JSON.parse(block.dataset.answer) };
}

async function steps(page) {
  const found = {};
  for (const name of names) {
    await page.click(`input[value=${name}] + span`);
    await page.waitForFunction((title) => document.querySelector("h2")?.textContent === title, {}, name);
    found[name] = await page.evaluate(shown);
  }
  return found;
}

console.log(JSON.stringify(await withPage(bundle, steps)));
