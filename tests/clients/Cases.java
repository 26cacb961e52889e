import adapterexport.AdapterBundle;
import adapterexport.AdapterBundle.Choice;
import adapterexport.AdapterBundle.Result;
import adapterexport.AdapterBundle.Tensor;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.function.Supplier;
import java.util.stream.Collectors;

/**
 * Cases BUNDLE DAMAGED FILES: what the Java client gives for a bundle, for a damaged one, and for the adapter files in a
 * folder; prints for each case a line with its name, a tab, and what came of it.
 */
class Cases {
  private static final long[][] IDS = {{2, 5, 6, 7, 3}, {2, 7, 3, 0, 0}, {2, 4, 12, 19, 3}};
  private static final long[][] MASK = {{1, 1, 1, 1, 1}, {1, 1, 1, 0, 0}, {1, 1, 1, 1, 1}};

  private static void say(String name, Supplier<Object> work) {
    Object found;
    try {
      found = work.get();
    } catch (RuntimeException error) {
      found = error.getClass().getSimpleName() + ": " + error.getMessage();
    }
    System.out.println(name + "\t" + String.valueOf(found).replace('\n', ' '));
  }

  private static Map<String, Tensor> rows(int from, int to) {
    Tensor ids = Tensor.of(Arrays.copyOfRange(IDS, from, to)), mask = Tensor.of(Arrays.copyOfRange(MASK, from, to));
    return Map.of("input_ids", ids, "attention_mask", mask);
  }

  private static String answers(Result result) {
    return "[" + result.answers().stream().map(answer -> answer.orElse("null")).collect(Collectors.joining(",")) + "]";
  }

  /** The bits of an output. */
  private static String bits(Result result, String output) {
    Tensor tensor = result.outputs().get(output);
    StringBuilder found = new StringBuilder(Arrays.toString(tensor.shape()));
    for (float number : tensor.floats()) found.append(' ').append(Float.floatToRawIntBits(number));
    return found.toString();
  }

  private static String load(AdapterBundle bundle, Path file) {
    try {
      bundle.load("new", Files.readAllBytes(file), null, List.of("x", "y"));
    } catch (java.io.IOException error) {
      throw new java.io.UncheckedIOException(error);
    }
    try {
      return answers(bundle.run(rows(0, 3), new Choice("new")));
    } finally {
      bundle.unload("new");
    }
  }

  private static void kept(Path folder) {
    try (AdapterBundle bundle = AdapterBundle.open(folder, 1, 4000)) {
      for (String name : new String[] {"tone", "topic"}) {
        say("kept " + name, () -> bits(bundle.run(rows(0, 1), new Choice(name)), "hidden"));
      }
      say("kept tone again", () -> bits(bundle.run(rows(0, 1), new Choice("tone")), "hidden"));
      say("kept mixed", () -> bits(bundle.run(rows(0, 3), new Choice("tone"), new Choice(null), new Choice("topic")), "hidden"));
      say("kept", bundle::prefixes);
    }
    try (AdapterBundle bundle = AdapterBundle.open(folder, 1, 1)) {
      for (int call = 0; call < 2; call++) bundle.run(rows(0, 1), new Choice("tone"));
      say("nothing kept", bundle::prefixes);
    }
  }

  public static void main(String[] arguments) {
    Path folder = Path.of(arguments[0]), files = Path.of(arguments[2]);
    AdapterBundle bundle = AdapterBundle.open(folder, 1, 0);
    say("verify", bundle::verify);
    say("adapters", bundle::adapters);
    say("task", () -> bundle.task("topic"));
    say("alone", () -> answers(bundle.run(rows(0, 3), new Choice("topic"))));
    say("base", () -> answers(bundle.run(rows(0, 3), new Choice(null))));
    Choice[] mixed = {new Choice("tone"), new Choice(null), new Choice("topic")};
    say("mixed", () -> answers(bundle.run(rows(0, 3), mixed)));
    say("mixed bits", () -> bits(bundle.run(rows(0, 3), mixed), "hidden"));
    Choice[] strengths = {new Choice("tone", 0.5), new Choice("topic", -1), new Choice("tone", 0)};
    say("strengths", () -> answers(bundle.run(rows(0, 3), strengths)));
    say("strength bits", () -> bits(bundle.run(rows(0, 3), strengths), "hidden"));
    for (String name : new String[] {"good", "NaN", "an overflow", "of another base"}) {
      say("file " + name, () -> load(bundle, files.resolve(name)));
    }
    kept(folder);

    say("refused: nobody", () -> bundle.run(rows(0, 3), new Choice("nobody")));
    say("refused: a zero", () -> bundle.run(rows(0, 3), new Choice("tone\0")));
    say("refused: strength", () -> bundle.run(rows(0, 3), new Choice("tone", Double.NaN)));
    Choice[] unlike = {new Choice("tone", 0.5), new Choice("tone", Double.NaN), new Choice("tone")};
    say("refused: strength of a row", () -> bundle.run(rows(0, 3), unlike));
    say("refused: choices", () -> bundle.run(rows(0, 3), new Choice("tone"), new Choice("tone")));
    say("refused: no choice", () -> bundle.run(rows(0, 3)));
    say("refused: no mask", () -> bundle.run(Map.of("input_ids", Tensor.of(IDS)), new Choice("tone")));
    Tensor wrong = Tensor.of(new long[][] {{2, 20, 3}}), all = Tensor.of(new long[][] {{1, 1, 1}});
    say("refused: id", () -> bundle.run(Map.of("input_ids", wrong, "attention_mask", all), new Choice("tone")));
    Tensor small = new Tensor("int32", new long[] {1, 2}, ByteBuffer.allocateDirect(8).order(ByteOrder.nativeOrder()));
    say("refused: type", () -> bundle.run(Map.of("input_ids", small, "attention_mask", all), new Choice("tone")));
    Tensor cut = new Tensor("int64", new long[] {1, 3}, ByteBuffer.allocate(8));
    say("refused: bytes", () -> bundle.run(Map.of("input_ids", cut, "attention_mask", all), new Choice("tone")));
    say("refused: context", () -> bundle.run(rows(0, 3), List.of(new Choice("tone")), new byte[] {1, 2, 0}));
    say("refused: unload", () -> { bundle.unload("nobody"); return null; });
    say("refused: damaged", () -> AdapterBundle.open(Path.of(arguments[1]), 1, 0));
    say("refused: threads", () -> AdapterBundle.open(folder, 0, 0));
    bundle.close();
    bundle.close();
    say("refused: closed", bundle::adapters);
  }
}
