/**
 * node clicks.mjs EXAMPLE BUNDLE TEXT FILE IMAGE: what a user does on the page of `examples/browser`, in EXAMPLE; prints
 * what the page shows after each step.
 */
const [example, bundle, text, file, image] = process.argv.slice(2);
const { withPage } = await import(`${example}/chromium.mjs`);

function shown() {
  const text = (node) => node.textContent;
  return {
    chosen: document.querySelector("input[name=adapter]:checked").value,
    latency: text(document.getElementById("latency")),
    error: document.querySelector("p.error")?.textContent ?? null,
    blocks: [...document.querySelectorAll("section")].map((block) => ({
      title: text(block.querySelector("h2")),
      rows: [...block.querySelectorAll(".row")].map((row) => {
        const [bar, track] = [".bar", ".track"].map((name) => row.querySelector(name).getBoundingClientRect().width);
        return { label: text(row.querySelector(".label")), number: text(row.querySelector(".number")), bar: bar / track };
      }),
      lines: [...block.querySelectorAll("p")].map(text),
    })),
  };
}

async function steps(page) {
  const found = {};
  const titled = (...titles) => {
    const wanted = (titles) => String([...document.querySelectorAll("h2")].map((node) => node.textContent)) === String(titles);
    return page.waitForFunction(wanted, {}, titles);
  };
  await page.$eval("#text", (area) => (area.value = ""));
  await page.click("input[value=tone] + span");
  await titled("tone");
  await page.type("#text", text);
  await page.waitForFunction((count) => document.getElementById("latency").textContent.startsWith(`${count} tokens`), {}, text.split(" ").length + 2);
  found.tone = await page.evaluate(shown);
  await page.click("#all");
  await titled("topic", "tone", "mood", "fusion", "fixed", "attended");
  found.all = await page.evaluate(shown);
  await page.screenshot({ path: image, fullPage: true });
  await page.click("input[value='no adapter'] + span");
  await titled("no adapter");
  found.none = await page.evaluate(shown);
  await (await page.$("#file")).uploadFile(file);
  await page.waitForFunction(() => document.querySelector("h2")?.textContent === "new" || document.querySelector("p.error"));
  found.loaded = await page.evaluate(shown);
  return found;
}

console.log(JSON.stringify(await withPage(bundle, steps)));
