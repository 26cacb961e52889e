/** What went wrong, in five facts: what, where, what was found, what was expected, and what to do next. */
export interface Facts {
  what: string;
  where?: string;
  found?: string;
  expected?: string;
  fix?: string;
}

export class Fault extends Error {
  constructor(facts: Facts) {
    super(sentence(facts));
  }
}

function sentence({ what, where, found, expected, fix }: Facts): string {
  const parts = [where ? `${where}: ${what}` : what];
  if (found) parts.push(`found ${found}`);
  if (expected) parts.push(`expected ${expected}`);
  const text = `${parts.join("; ")}.`;
  return fix ? `${text} ${fix[0]!.toUpperCase()}${fix.slice(1)}.` : text;
}
