/** An error in five facts: what is wrong, where, what was found, what was expected, and what to do next. */
export interface Facts {
  what: string;
  where?: string;
  found?: string;
  expected?: string;
  fix?: string;
}

export class Fault extends Error {
  constructor(readonly facts: Facts) {
    super(sentence(facts));
  }

  /** Run `work`, and name the place in a Fault that it throws. */
  static async at<T>(place: string, work: () => T | Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Fault) || !place) throw error;
      const { where } = error.facts;
      throw new Fault({ ...error.facts, where: where ? `${place}, ${where}` : place });
    }
  }
}

function sentence({ what, where, found, expected, fix }: Facts): string {
  const parts = [where ? `${where}: ${what}` : what];
  if (found) parts.push(`found ${found}`);
  if (expected) parts.push(`expected ${expected}`);
  const text = `${parts.join("; ")}.`;
  return fix ? `${text} ${fix[0]!.toUpperCase()}${fix.slice(1)}.` : text;
}
