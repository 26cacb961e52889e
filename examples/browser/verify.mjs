/**
 * node verify.mjs BUNDLE [SCREENSHOT.png]: open the page in Chromium, and let it hold the bundle against its golden
 * vectors. Exit code 0 if all hold, 1 if not.
 */
import { failOnError, withPage } from "./chromium.mjs";

async function verify(page, screenshot) {
  if (screenshot) await page.screenshot({ path: screenshot, fullPage: true });
  await failOnError(page);
  await page.click("#check");
  await page.waitForSelector("[data-finding], p.error");
  await failOnError(page);
  return page.$$eval("[data-finding]", (rows) => rows.map((row) => JSON.parse(row.dataset.finding)));
}

const [bundle, screenshot] = process.argv.slice(2);
if (!bundle) {
  console.error("usage: node verify.mjs BUNDLE [SCREENSHOT.png]");
  process.exit(2);
}
try {
  const findings = await withPage(bundle, (page) => verify(page, screenshot));
  console.log(JSON.stringify(findings, null, 2));
  if (!findings.length || !findings.every(({ worst }) => worst <= 1)) throw new Error("the page does not compute what the reference computed");
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
}
