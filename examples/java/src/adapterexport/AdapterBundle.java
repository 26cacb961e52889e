package adapterexport;

import static java.lang.foreign.ValueLayout.ADDRESS;
import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_DOUBLE;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.locks.ReadWriteLock;
import java.util.concurrent.locks.ReentrantReadWriteLock;
import java.util.function.Function;

/**
 * An open bundle of adapter-export, with the adapters that are loaded.
 *
 * <p>Any number of threads may use it at once, while adapters are loaded and unloaded; {@code close} waits for them. All
 * methods but {@code open} throw {@link RequestException} for a call that cannot be served.
 */
public final class AdapterBundle implements AutoCloseable {

  /** A call that cannot be served; the bundle is sound, and the next call may succeed. */
  public static final class RequestException extends RuntimeException {
    RequestException(String message) {
      super(message);
    }
  }

  /** A bundle that is damaged, or that this machine cannot run. */
  public static final class BundleException extends RuntimeException {
    BundleException(String message) {
      super(message);
    }
  }

  /**
   * An array, row-major, its numbers in the order of bytes of this machine.
   *
   * @param dtype the type that the manifest names: {@code int64}, {@code int32}, {@code float32} or {@code bool}.
   * @param data all of it between position and limit; it is read where it lies if it is direct.
   */
  public record Tensor(String dtype, long[] shape, ByteBuffer data) {
    /** The numbers of one row, such as its ids or its mask. */
    public static Tensor of(long... numbers) {
      ByteBuffer data = buffer(8L * numbers.length);
      for (long number : numbers) data.putLong(number);
      return new Tensor("int64", new long[] {numbers.length}, data.flip());
    }

    /** Numbers of float32, row-major. */
    public static Tensor of(float[] numbers, long... shape) {
      ByteBuffer data = buffer(4L * numbers.length);
      for (float number : numbers) data.putFloat(number);
      return new Tensor("float32", shape, data.flip());
    }

    /** The numbers of a float32 array, row-major. */
    public float[] floats() {
      if (!dtype.equals("float32")) throw new IllegalStateException("an array of " + dtype + ", not of float32");
      float[] found = new float[data.remaining() / 4];
      data.duplicate().order(ByteOrder.nativeOrder()).asFloatBuffer().get(found);
      return found;
    }

    private static ByteBuffer buffer(long bytes) {
      return ByteBuffer.allocate(Math.toIntExact(bytes)).order(ByteOrder.nativeOrder());
    }
  }

  /**
   * One row of a request, whatever the other rows are.
   *
   * @param inputs each input of the graph, without an axis for the rows: the ids of three tokens have the shape [3].
   * @param adapter its name; null is the base, with its base head if it has one.
   * @param strength how many times what the adapter adds is added, from −1000 to 1000.
   * @param weights the weights of all members of a weighted fusion; empty are its own.
   * @param context for each token a 1 if it may be the answer to a question; required for spans, else null.
   */
  public record Row(Map<String, Tensor> inputs, String adapter, double strength, Map<String, Double> weights, byte[] context) {
    public Row(Map<String, Tensor> inputs, String adapter) {
      this(inputs, adapter, 1, Map.of(), null);
    }
  }

  /** What an adapter answers: its problem type, and its labels in the order of its results. */
  public record Task(String type, List<String> labels) {}

  /**
   * What a row gave.
   *
   * @param answer JSON: {@code adapter}, {@code task}, and the keys of the task (docs/reference/format.md, "Answers").
   * @param outputs the base's outputs and that of the adapter's head by name, without an axis for the rows.
   */
  public record Result(String answer, Map<String, Tensor> outputs) {}

  /** What became of the rows of which the part below all adapters may be kept. */
  public record PrefixCounts(long hits, long loads, long evictions, long resident) {}

  private final MemorySegment handle;
  private final ReadWriteLock lock = new ReentrantReadWriteLock();
  private boolean isClosed = false;

  private AdapterBundle(MemorySegment handle) {
    this.handle = handle;
  }

  /**
   * Opens a bundle: every file is held against its hash.
   *
   * @param threads of a call inside ONNX Runtime.
   * @param prefixBytes memory for cached activations below all adapters, for rows that come again with another adapter;
   *     more than 0 needs a bundle with the graph {@code fanout}.
   */
  public static AdapterBundle open(Path folder, int threads, long prefixBytes) {
    if (prefixBytes < 0) throw new RequestException("`prefixBytes`: is no number of bytes; found " + prefixBytes + ".");
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment bundle = arena.allocate(ADDRESS);
      Native.OPEN.call(arena, Native.text(arena, folder.toString()), threads, prefixBytes, bundle);
      return new AdapterBundle(bundle.get(ADDRESS, 0));
    }
  }

  /**
   * Compares the bundle with its golden vectors, golden parts and recorded runs, and replays its golden texts and golden
   * batches; returns the findings as JSON, and throws if one of them is wrong.
   */
  public String verify() {
    return using(arena -> {
      MemorySegment findings = arena.allocate(ADDRESS);
      try {
        Native.VERIFY.call(arena, handle, findings);
        return Native.text(findings.get(ADDRESS, 0));
      } finally {
        Native.free(findings.get(ADDRESS, 0));
      }
    });
  }

  /** The names of the adapters that are loaded. */
  public List<String> adapters() {
    return using(arena -> {
      MemorySegment names = arena.allocate(ADDRESS);
      Native.ADAPTERS.call(arena, handle, names);
      return Native.takenList(names.get(ADDRESS, 0));
    });
  }

  /** The answer of an adapter; absent without a task. */
  public Optional<Task> task(String adapter) {
    return using(arena -> {
      MemorySegment type = arena.allocate(ADDRESS), labels = arena.allocate(ADDRESS);
      Native.TASK.call(arena, handle, Native.text(arena, adapter), type, labels);
      List<String> found = Native.takenList(labels.get(ADDRESS, 0));
      return Native.taken(type).map(name -> new Task(name, found));
    });
  }

  /**
   * Loads an adapter from the bytes of an {@code .onnx_adapter} file that was made for this bundle.
   *
   * @param type what its results mean; null with labels is the classification that its head can do, and without them nobody
   *     knows it.
   */
  public void load(String name, byte[] file, String type, List<String> labels) {
    using(arena -> {
      MemorySegment texts = arena.allocate(ADDRESS, Math.max(1, labels.size()));
      for (int at = 0; at < labels.size(); at++) texts.setAtIndex(ADDRESS, at, Native.text(arena, labels.get(at)));
      MemorySegment said = type == null ? MemorySegment.NULL : Native.text(arena, type);
      MemorySegment bytes = arena.allocateFrom(JAVA_BYTE, file);
      Native.LOAD.call(arena, handle, Native.text(arena, name), bytes, bytes.byteSize(), said, texts, (long) labels.size());
      return null;
    });
  }

  /** Forgets an adapter; calls that run with it at this moment end well. */
  public void unload(String name) {
    using(arena -> {
      Native.UNLOAD.call(arena, handle, Native.text(arena, name));
      return null;
    });
  }

  /**
   * Runs rows, and returns what each gave, in their order.
   *
   * <p>They may differ in length, adapter, strength and weights: the answer to each is what it would be alone. Rows share a
   * call where that does not change their answers.
   */
  public List<Result> run(Row... rows) {
    return run(List.of(rows));
  }

  /** Runs rows, as {@link #run(Row...)}. */
  public List<Result> run(List<Row> rows) {
    return using(arena -> {
      MemorySegment written = arena.allocate(Native.ROW, Math.max(1, rows.size()));
      for (int at = 0; at < rows.size(); at++) {
        write(written.asSlice(Native.ROW.byteSize() * at, Native.ROW), rows.get(at), arena);
      }
      MemorySegment result = arena.allocate(ADDRESS);
      Native.RUN.call(arena, handle, written, (long) rows.size(), result);
      return read(result.get(ADDRESS, 0), arena);
    });
  }

  /** What became of the rows of which the part below all adapters may be kept. */
  public PrefixCounts prefixes() {
    return using(arena -> {
      MemorySegment counts = arena.allocate(JAVA_LONG, 4);
      Native.PREFIX_COUNTS.call(arena, handle, counts);
      long[] found = counts.toArray(JAVA_LONG);
      return new PrefixCounts(found[0], found[1], found[2], found[3]);
    });
  }

  /** Waits until no other call uses the bundle, and frees it. */
  @Override
  public void close() {
    lock.writeLock().lock();
    try {
      if (!isClosed) Native.close(handle);
      isClosed = true;
    } finally {
      lock.writeLock().unlock();
    }
  }

  private <T> T using(Function<Arena, T> work) {
    lock.readLock().lock();
    try (Arena arena = Arena.ofConfined()) {
      if (isClosed) throw new IllegalStateException("the bundle is closed");
      return work.apply(arena);
    } finally {
      lock.readLock().unlock();
    }
  }

  private static void write(MemorySegment row, Row given, Arena arena) {
    MemorySegment arrays = arena.allocate(Native.ARRAY, Math.max(1, given.inputs().size()));
    int at = 0;
    for (Map.Entry<String, Tensor> input : given.inputs().entrySet()) {
      write(arrays.asSlice(Native.ARRAY.byteSize() * at++, Native.ARRAY), input.getKey(), input.getValue(), arena);
    }
    MemorySegment weights = arena.allocate(Native.WEIGHT, Math.max(1, given.weights().size()));
    at = 0;
    for (Map.Entry<String, Double> weight : given.weights().entrySet()) {
      weights.set(ADDRESS, Native.WEIGHT.byteSize() * at, Native.text(arena, weight.getKey()));
      weights.set(JAVA_DOUBLE, Native.WEIGHT.byteSize() * at++ + ADDRESS.byteSize(), weight.getValue());
    }
    MemorySegment context = given.context() == null ? MemorySegment.NULL : arena.allocateFrom(JAVA_BYTE, given.context());
    row.set(ADDRESS, Native.offset(Native.ROW, "inputs"), arrays);
    row.set(JAVA_LONG, Native.offset(Native.ROW, "input_count"), given.inputs().size());
    row.set(ADDRESS, Native.offset(Native.ROW, "adapter"), given.adapter() == null ? MemorySegment.NULL : Native.text(arena, given.adapter()));
    row.set(JAVA_DOUBLE, Native.offset(Native.ROW, "strength"), given.strength());
    row.set(ADDRESS, Native.offset(Native.ROW, "weights"), weights);
    row.set(JAVA_LONG, Native.offset(Native.ROW, "weight_count"), given.weights().size());
    row.set(ADDRESS, Native.offset(Native.ROW, "context"), context);
    row.set(JAVA_LONG, Native.offset(Native.ROW, "context_size"), context.byteSize());
  }

  private static void write(MemorySegment array, String name, Tensor tensor, Arena arena) {
    MemorySegment given = MemorySegment.ofBuffer(tensor.data()), shape = arena.allocateFrom(JAVA_LONG, tensor.shape());
    MemorySegment data = given.isNative() ? given : arena.allocate(given.byteSize(), JAVA_LONG.byteAlignment()).copyFrom(given);
    array.set(ADDRESS, Native.offset(Native.ARRAY, "name"), Native.text(arena, name));
    array.set(ADDRESS, Native.offset(Native.ARRAY, "dtype"), Native.text(arena, tensor.dtype()));
    array.set(ADDRESS, Native.offset(Native.ARRAY, "shape"), shape);
    array.set(JAVA_LONG, Native.offset(Native.ARRAY, "rank"), tensor.shape().length);
    array.set(ADDRESS, Native.offset(Native.ARRAY, "data"), data);
    array.set(JAVA_LONG, Native.offset(Native.ARRAY, "bytes"), data.byteSize());
  }

  private static List<Result> read(MemorySegment result, Arena arena) {
    try {
      List<Result> found = new ArrayList<>();
      MemorySegment json = arena.allocate(ADDRESS), array = arena.allocate(Native.ARRAY);
      for (long row = 0; row < Native.size(Native.RESULT_ROWS, result); row++) {
        Map<String, Tensor> outputs = new LinkedHashMap<>();
        for (long at = 0; at < Native.size(Native.RESULT_OUTPUTS, result, row); at++) {
          Native.RESULT_OUTPUT.call(arena, result, row, at, array);
          outputs.put(Native.text(array.get(ADDRESS, 0)), tensor(array));
        }
        Native.RESULT_ANSWER.call(arena, result, row, json);
        found.add(new Result(Native.taken(json).orElseThrow(), Collections.unmodifiableMap(outputs)));
      }
      return List.copyOf(found);
    } finally {
      Native.freeResult(result);
    }
  }

  /** A copy of an array that lives as long as its result. */
  private static Tensor tensor(MemorySegment array) {
    long rank = array.get(JAVA_LONG, Native.offset(Native.ARRAY, "rank")), bytes = array.get(JAVA_LONG, Native.offset(Native.ARRAY, "bytes"));
    long[] shape = array.get(ADDRESS, Native.offset(Native.ARRAY, "shape")).reinterpret(rank * JAVA_LONG.byteSize()).toArray(JAVA_LONG);
    byte[] data = array.get(ADDRESS, Native.offset(Native.ARRAY, "data")).reinterpret(bytes).toArray(JAVA_BYTE);
    String dtype = Native.text(array.get(ADDRESS, Native.offset(Native.ARRAY, "dtype")));
    return new Tensor(dtype, shape, ByteBuffer.wrap(data).order(ByteOrder.nativeOrder()).asReadOnlyBuffer());
  }
}
