import adapterexport.AdapterBundle;
import adapterexport.AdapterBundle.Result;
import adapterexport.AdapterBundle.Row;
import adapterexport.AdapterBundle.Tensor;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.function.Supplier;
import java.util.stream.Collectors;

/**
 * Cases BUNDLE DAMAGED FILES TASKS: what the Java client gives for a bundle, for a damaged one, for the adapter files in a
 * folder, and for a bundle with an adapter of each task; prints for each case a line with its name, a tab, and what came of it.
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

  /** Rows of the table with one adapter for all of them, or one for each. */
  private static List<Row> rows(int from, int to, String... adapters) {
    List<Row> found = new ArrayList<>();
    for (int row = from; row < to; row++) found.add(row(row, adapters[adapters.length == 1 ? 0 : row - from], 1));
    return found;
  }

  private static Row row(int row, String adapter, double strength) {
    return new Row(inputs(IDS[row], MASK[row]), adapter, strength, Map.of(), null);
  }

  private static Map<String, Tensor> inputs(long[] ids, long[] mask) {
    return Map.of("input_ids", Tensor.of(ids), "attention_mask", Tensor.of(mask));
  }

  private static String answers(List<Result> results) {
    return "[" + results.stream().map(Result::answer).collect(Collectors.joining(",")) + "]";
  }

  /** The bits of an output of each row. */
  private static String bits(List<Result> results, String output) {
    StringBuilder found = new StringBuilder();
    for (Result result : results) {
      Tensor tensor = result.outputs().get(output);
      found.append(found.isEmpty() ? "" : ";").append(Arrays.toString(tensor.shape()));
      for (float number : tensor.floats()) found.append(' ').append(Float.floatToRawIntBits(number));
    }
    return found.toString();
  }

  private static String load(AdapterBundle bundle, Path file) {
    try {
      bundle.load("new", Files.readAllBytes(file), null, List.of("x", "y"));
    } catch (java.io.IOException error) {
      throw new java.io.UncheckedIOException(error);
    }
    try {
      return answers(bundle.run(rows(0, 3, "new")));
    } finally {
      bundle.unload("new");
    }
  }

  private static void kept(Path folder) {
    try (AdapterBundle bundle = AdapterBundle.open(folder, 1, 4000)) {
      for (String name : new String[] {"tone", "topic"}) {
        say("kept " + name, () -> bits(bundle.run(rows(0, 1, name)), "hidden"));
      }
      say("kept tone again", () -> bits(bundle.run(rows(0, 1, "tone")), "hidden"));
      say("kept mixed", () -> bits(bundle.run(rows(0, 3, "tone", null, "topic")), "hidden"));
      say("kept", bundle::prefixes);
    }
    try (AdapterBundle bundle = AdapterBundle.open(folder, 1, 1)) {
      for (int call = 0; call < 2; call++) bundle.run(rows(0, 1, "tone"));
      say("nothing kept", bundle::prefixes);
    }
  }

  public static void main(String[] arguments) {
    Path folder = Path.of(arguments[0]), files = Path.of(arguments[2]);
    AdapterBundle bundle = AdapterBundle.open(folder, 1, 0);
    say("verify", bundle::verify);
    say("adapters", bundle::adapters);
    say("task", () -> bundle.task("topic"));
    say("alone", () -> answers(bundle.run(rows(0, 3, "topic"))));
    say("base", () -> answers(bundle.run(row(0, null, 1))));
    List<Row> mixed = rows(0, 3, "tone", null, "topic");
    say("mixed", () -> answers(bundle.run(mixed)));
    say("mixed bits", () -> bits(bundle.run(mixed), "hidden"));
    List<Row> strengths = List.of(row(0, "tone", 0.5), row(1, "topic", -1), row(2, "tone", 0));
    say("strengths", () -> answers(bundle.run(strengths)));
    say("strength bits", () -> bits(bundle.run(strengths), "hidden"));
    long[] few = {2, 7, 3}, all = {1, 1, 1}, left = {0, 0, 2, 7, 3};
    List<Row> lengths = List.of(row(0, "tone", 1), new Row(inputs(few, all), "topic"), new Row(inputs(few, all), "tone"));
    say("lengths", () -> answers(bundle.run(lengths)));
    say("padding on the left", () -> answers(bundle.run(new Row(inputs(left, new long[] {0, 0, 1, 1, 1}), "tone"))));
    Map<String, Double> weights = Map.of("tone", 0.25, "mood", 1.5);
    say("weights", () -> answers(bundle.run(new Row(inputs(few, all), "fusion", 1, weights, null), row(0, "fixed", 1))));
    try (AdapterBundle tasks = AdapterBundle.open(Path.of(arguments[3]), 1, 0)) {
      byte[] context = {0, 1, 1};
      say("span", () -> answers(tasks.run(new Row(inputs(few, all), "span", 1, Map.of(), context))));
      say("refused: span", () -> tasks.run(new Row(inputs(few, all), "span")));
      say("refused: context", () -> tasks.run(new Row(inputs(few, all), "span", 1, Map.of(), new byte[] {1, 2, 0})));
      say("refused: short context", () -> tasks.run(new Row(inputs(few, all), "span", 1, Map.of(), new byte[] {1})));
    }
    for (String name : new String[] {"good", "NaN", "an overflow", "of another base"}) {
      say("file " + name, () -> load(bundle, files.resolve(name)));
    }
    kept(folder);

    say("refused: nobody", () -> bundle.run(rows(0, 1, "nobody")));
    say("refused: a zero", () -> bundle.run(rows(0, 1, "tone\0")));
    say("refused: strength", () -> bundle.run(row(0, "tone", Double.NaN)));
    say("refused: strength of a row", () -> bundle.run(row(0, "tone", 0.5), row(1, "tone", Double.NaN), row(2, "tone", 1)));
    say("refused: no row", () -> bundle.run());
    say("refused: no mask", () -> bundle.run(new Row(Map.of("input_ids", Tensor.of(few)), "tone")));
    say("refused: id", () -> bundle.run(new Row(inputs(new long[] {2, 20, 3}, all), "tone")));
    say("refused: weights", () -> bundle.run(new Row(inputs(few, all), "fusion", 1, Map.of("tone", 1.0), null)));
    say("refused: weights of none", () -> bundle.run(new Row(inputs(few, all), "tone", 1, weights, null)));
    Tensor small = new Tensor("int32", new long[] {2}, ByteBuffer.allocateDirect(8).order(ByteOrder.nativeOrder()));
    Tensor cut = new Tensor("int64", new long[] {3}, ByteBuffer.allocate(8)), mask = Tensor.of(all);
    say("refused: type", () -> bundle.run(new Row(Map.of("input_ids", small, "attention_mask", mask), "tone")));
    say("refused: bytes", () -> bundle.run(new Row(Map.of("input_ids", cut, "attention_mask", mask), "tone")));
    say("refused: unload", () -> { bundle.unload("nobody"); return null; });
    say("refused: damaged", () -> AdapterBundle.open(Path.of(arguments[1]), 1, 0));
    say("refused: threads", () -> AdapterBundle.open(folder, 0, 0));
    bundle.close();
    bundle.close();
    say("refused: closed", bundle::adapters);
  }
}
