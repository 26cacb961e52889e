/*
 * Bundles of adapter-export, for every language that calls C: link `libadapter_export_c`.
 *
 * Each function that can fail returns a status. If it is not AE_OK, nothing else was given back but a sentence that says
 * what is wrong, where, and what to do next, in `*error`, which the caller frees by `ae_free`; `error` may be NULL. No
 * exception leaves a function, no argument has a default, and a pointer that must not be NULL and is gives AE_REQUEST.
 * Texts are UTF-8 and end with a zero byte.
 *
 * Any number of threads may use one `ae_bundle` at once, while adapters are loaded and unloaded. `ae_close` must come
 * after every other call with it has returned. Results and lists are never changed, and outlive their bundle.
 */
#ifndef ADAPTER_EXPORT_H
#define ADAPTER_EXPORT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define AE_API __declspec(dllexport)
#else
#define AE_API __attribute__((visibility("default")))
#endif

typedef enum ae_status {
  AE_OK = 0,
  AE_REQUEST = 1,  /* this call cannot be served; the bundle is sound, and the next call may succeed */
  AE_BUNDLE = 2,   /* the bundle is damaged, or this machine cannot run it */
  AE_INTERNAL = 3, /* anything else, such as no memory */
} ae_status;

typedef struct ae_bundle ae_bundle; /* an open bundle with the adapters that are loaded */
typedef struct ae_result ae_result; /* what a call computed */
typedef struct ae_list ae_list;     /* some texts */

/* An array: row-major, with the type that the manifest names: "int64", "int32", "float32" or "bool". */
typedef struct ae_array {
  const char *name;
  const char *dtype;
  const int64_t *shape;
  size_t rank;
  const void *data;
  size_t bytes;
} ae_array;

/* The weight of a member of a weighted fusion. */
typedef struct ae_weight {
  const char *member;
  double weight;
} ae_weight;

/* One row of a request, whatever the other rows are. */
typedef struct ae_row {
  /* Each input of the graph, without an axis for the rows: the ids of three tokens have the shape [3]. */
  const ae_array *inputs;
  size_t input_count;
  /* The adapter; NULL is the base, with its base head if it has one. */
  const char *adapter;
  /* How many times what the adapter adds is added, from -1000 to 1000: 1 is the adapter as it was trained, 0 the base. */
  double strength;
  /* The weights of all members of a weighted fusion; without any, its own. */
  const ae_weight *weights;
  size_t weight_count;
  /* A byte for each token, 1 for those that may be the answer to a question; required for spans, else NULL. */
  const uint8_t *context;
  size_t context_size;
} ae_row;

/* What became of the rows of which the part below all adapters may be kept. */
typedef struct ae_counts {
  uint64_t hits, loads, evictions, resident;
} ae_counts;

/* Open a bundle: every file is held against its hash, and what runs is a private copy.
 * `threads`: of a call inside ONNX Runtime, at least 1.
 * `prefix_bytes`: how much memory may keep what lies below all adapters, for rows that come again with another adapter; 0
 * keeps nothing, and more needs a bundle with the graph `fanout`. */
AE_API ae_status ae_open(const char *folder, int32_t threads, uint64_t prefix_bytes, ae_bundle **bundle, char **error);
AE_API void ae_close(ae_bundle *bundle);

/* Compare the bundle with its golden vectors, golden parts and recorded runs, in every way that this machine can run it, and
 * replay its golden texts and golden batches by the way that `ae_run` takes. `*findings` is JSON, as of `bundle_client verify
 * --json`; also where the status is AE_BUNDLE since one of them is wrong. */
AE_API ae_status ae_verify(const ae_bundle *bundle, char **findings, char **error);

/* The names of the adapters that are loaded. */
AE_API ae_status ae_adapters(const ae_bundle *bundle, ae_list **names, char **error);

/* The problem type of an adapter, and its labels in the order of its results. `*type` is NULL if nobody knows it. */
AE_API ae_status ae_task(const ae_bundle *bundle, const char *adapter, char **type, ae_list **labels, char **error);

/* Load an adapter from the bytes of an `.onnx_adapter` file that was made for this bundle.
 * `type` and `labels` say what its results mean. With `type` NULL and labels, it is the classification that its head can
 * do; with neither, its answers are its results as they are. */
AE_API ae_status ae_load(ae_bundle *bundle, const char *name, const void *bytes, size_t size, const char *type,
                         const char *const *labels, size_t label_count, char **error);

/* Forget an adapter; calls that run with it at this moment end well. */
AE_API ae_status ae_unload(ae_bundle *bundle, const char *name, char **error);

/* Run rows. They may differ in length, adapter, strength and weights: the answer to each is what it would be alone. Rows
 * share a call where that does not change their answers.
 * An output that is NaN or infinite is an error, and so is a span without a context. */
AE_API ae_status ae_run(const ae_bundle *bundle, const ae_row *rows, size_t row_count, ae_result **result, char **error);

/* The number of rows of a result, and the answer to one as JSON: "adapter", "task", and the keys of its task, or "outputs"
 * without a task (docs/reference/format.md, "Answers"). */
AE_API size_t ae_result_rows(const ae_result *result);
AE_API ae_status ae_result_answer(const ae_result *result, size_t row, char **json, char **error);

/* The arrays of a row: the base's outputs, and that of the adapter's head, without an axis for the rows. What they point to
 * lives as long as the result. */
AE_API size_t ae_result_outputs(const ae_result *result, size_t row);
AE_API ae_status ae_result_output(const ae_result *result, size_t row, size_t at, ae_array *output, char **error);
AE_API void ae_result_free(ae_result *result);

AE_API ae_status ae_prefix_counts(const ae_bundle *bundle, ae_counts *counts, char **error);

/* The texts of a list; NULL behind its end. They live as long as the list. */
AE_API size_t ae_list_size(const ae_list *list);
AE_API const char *ae_list_at(const ae_list *list, size_t at);
AE_API void ae_list_free(ae_list *list);

/* Free a text that was given back: an error, findings, a type, an answer. NULL is fine, here and for the others. */
AE_API void ae_free(char *text);

#ifdef __cplusplus
}
#endif

#endif
