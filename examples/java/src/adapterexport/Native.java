package adapterexport;

import static java.lang.foreign.ValueLayout.ADDRESS;
import static java.lang.foreign.ValueLayout.JAVA_DOUBLE;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemoryLayout.PathElement;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.StructLayout;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.stream.LongStream;

/** The functions of {@code adapter_export.h}. */
final class Native {

  /** {@code ae_array} */
  static final StructLayout ARRAY =
      MemoryLayout.structLayout(
          ADDRESS.withName("name"), ADDRESS.withName("dtype"), ADDRESS.withName("shape"), JAVA_LONG.withName("rank"),
          ADDRESS.withName("data"), JAVA_LONG.withName("bytes"));

  /** {@code ae_weight} */
  static final StructLayout WEIGHT = MemoryLayout.structLayout(ADDRESS.withName("member"), JAVA_DOUBLE.withName("weight"));

  /** {@code ae_row} */
  static final StructLayout ROW =
      MemoryLayout.structLayout(
          ADDRESS.withName("inputs"), JAVA_LONG.withName("input_count"), ADDRESS.withName("adapter"),
          JAVA_DOUBLE.withName("strength"), ADDRESS.withName("weights"), JAVA_LONG.withName("weight_count"),
          ADDRESS.withName("context"), JAVA_LONG.withName("context_size"));

  /** The property with the path of the library; without it, it is looked for where the system does. */
  private static final String LIBRARY = "adapter_export.library";

  private static final SymbolLookup SYMBOLS = library();

  static final Function OPEN = function("ae_open", ADDRESS, JAVA_INT, JAVA_LONG, ADDRESS);
  static final Function VERIFY = function("ae_verify", ADDRESS, ADDRESS);
  static final Function ADAPTERS = function("ae_adapters", ADDRESS, ADDRESS);
  static final Function TASK = function("ae_task", ADDRESS, ADDRESS, ADDRESS, ADDRESS);
  static final Function LOAD =
      function("ae_load", ADDRESS, ADDRESS, ADDRESS, JAVA_LONG, ADDRESS, ADDRESS, JAVA_LONG);
  static final Function UNLOAD = function("ae_unload", ADDRESS, ADDRESS);
  static final Function RUN = function("ae_run", ADDRESS, ADDRESS, JAVA_LONG, ADDRESS);
  static final Function PREFIX_COUNTS = function("ae_prefix_counts", ADDRESS, ADDRESS);
  static final Function RESULT_ANSWER = function("ae_result_answer", ADDRESS, JAVA_LONG, ADDRESS);
  static final Function RESULT_OUTPUT = function("ae_result_output", ADDRESS, JAVA_LONG, JAVA_LONG, ADDRESS);
  static final MethodHandle RESULT_ROWS = handle("ae_result_rows", FunctionDescriptor.of(JAVA_LONG, ADDRESS));
  static final MethodHandle RESULT_OUTPUTS = handle("ae_result_outputs", FunctionDescriptor.of(JAVA_LONG, ADDRESS, JAVA_LONG));

  private static final MethodHandle LIST_SIZE = handle("ae_list_size", FunctionDescriptor.of(JAVA_LONG, ADDRESS));
  private static final MethodHandle LIST_AT = handle("ae_list_at", FunctionDescriptor.of(ADDRESS, ADDRESS, JAVA_LONG));
  private static final MethodHandle LIST_FREE = handle("ae_list_free", FunctionDescriptor.ofVoid(ADDRESS));
  private static final MethodHandle RESULT_FREE = handle("ae_result_free", FunctionDescriptor.ofVoid(ADDRESS));
  private static final MethodHandle FREE = handle("ae_free", FunctionDescriptor.ofVoid(ADDRESS));
  private static final MethodHandle CLOSE = handle("ae_close", FunctionDescriptor.ofVoid(ADDRESS));

  private Native() {}

  /** A function that returns a status, and gives an error as its last argument. */
  record Function(MethodHandle handle) {

    /** Calls it; a status that is not AE_OK becomes an exception with the sentence that was given. */
    void call(Arena arena, Object... arguments) {
      MemorySegment error = arena.allocate(ADDRESS);
      Object[] all = Arrays.copyOf(arguments, arguments.length + 1);
      all[arguments.length] = error;
      int status = (int) invoke(handle, all);
      if (status == 0) return;
      String message = taken(error).orElse("no memory for a message");
      throw switch (status) {
        case 1 -> new AdapterBundle.RequestException(message);
        case 2 -> new AdapterBundle.BundleException(message);
        default -> new IllegalStateException(message);
      };
    }
  }

  static long offset(StructLayout layout, String field) {
    return layout.byteOffset(PathElement.groupElement(field));
  }

  static long size(MethodHandle function, Object... of) {
    return (long) invoke(function, of);
  }

  /** A text for a function of C, whose texts end with a zero. */
  static MemorySegment text(Arena arena, String text) {
    if (text.indexOf('\0') >= 0) throw new AdapterBundle.RequestException("a text holds a zero character.");
    return arena.allocateFrom(text);
  }

  /** A text that somebody else owns. */
  static String text(MemorySegment address) {
    return address.reinterpret(Long.MAX_VALUE).getString(0);
  }

  /** Copy and free the text at an address; null if the address is null. */
  static Optional<String> taken(MemorySegment place) {
    MemorySegment address = place.get(ADDRESS, 0);
    if (address.equals(MemorySegment.NULL)) return Optional.empty();
    try {
      return Optional.of(text(address));
    } finally {
      free(address);
    }
  }

  /** The texts of a list, which is freed. */
  static List<String> takenList(MemorySegment list) {
    try {
      LongStream places = LongStream.range(0, size(LIST_SIZE, list));
      return places.mapToObj(at -> text((MemorySegment) invoke(LIST_AT, list, at))).toList();
    } finally {
      invoke(LIST_FREE, list);
    }
  }

  static void free(MemorySegment text) {
    invoke(FREE, text);
  }

  static void freeResult(MemorySegment result) {
    invoke(RESULT_FREE, result);
  }

  static void close(MemorySegment bundle) {
    invoke(CLOSE, bundle);
  }

  private static Object invoke(MethodHandle handle, Object... arguments) {
    try {
      return handle.invokeWithArguments(arguments);
    } catch (RuntimeException | Error error) {
      throw error;
    } catch (Throwable error) {
      throw new IllegalStateException(error); // functions of C throw nothing
    }
  }

  private static Function function(String name, MemoryLayout... arguments) {
    MemoryLayout[] all = Arrays.copyOf(arguments, arguments.length + 1);
    all[arguments.length] = ADDRESS;
    return new Function(handle(name, FunctionDescriptor.of(JAVA_INT, all)));
  }

  private static MethodHandle handle(String name, FunctionDescriptor descriptor) {
    return Linker.nativeLinker().downcallHandle(SYMBOLS.find(name).orElseThrow(() -> new UnsatisfiedLinkError(name)), descriptor);
  }

  private static SymbolLookup library() {
    String path = System.getProperty(LIBRARY);
    if (path != null) return SymbolLookup.libraryLookup(Path.of(path), Arena.global());
    return SymbolLookup.libraryLookup(System.mapLibraryName("adapter_export_c"), Arena.global());
  }
}
