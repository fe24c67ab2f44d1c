/* A session of LiteRT on the CPU with XNNPACK, through its C API.
 *
 * The wheel brings libLiteRt.so without headers; the prototypes below are written by hand for
 * ai-edge-litert 2.3.0, as in edgebuild/runtimes/_litert_profile.py.
 */
#include <stdio.h>
#include <string.h>

#include "runner.h"

enum { CPU = 1, HOST_MEMORY = 1, READ = 0, WRITE = 1 };

typedef struct {
    /* Seven bits are the rank, the eighth says whether there are strides. */
    uint32_t rank;
    int32_t dimensions[MOST_DIMENSIONS];
    uint32_t strides[MOST_DIMENSIONS];
} Layout;

typedef struct {
    int element;
    Layout layout;
} TensorType;

/* The model's tensors of one side, in the signature's order; `places` is where ours are. */
typedef struct {
    int count;
    void *buffers[MOST_TENSORS];
    int places[MOST_TENSORS];
    /* Ours: what a run reads from, or is read into. */
    Tensor *tensors;
} Side;

typedef struct {
    void *library, *environment, *model, *compiled, *signature;
    Side inputs, outputs;
} Own;

/* Calls a function by its name, looked up once; all that are used return 0 where they succeed. */
#define CALL(own, name, types, ...)                                 \
    do {                                                            \
        static int(*function) types;                                \
        if (function == NULL)                                       \
            function = (int(*) types)symbol((own)->library, #name); \
        expect(#name, function(__VA_ARGS__));                       \
    } while (0)

static void expect(const char *function, int status);
static void *options_of(Own *own, const Spec *spec);
static void open_inputs(Own *own, Session *session, const Spec *spec);
static void open_outputs(Own *own, Session *session, const Spec *spec);
static void describe(void *handle, Own *own, TensorType *type, Tensor *tensor);
static void *buffer_of(Own *own, const TensorType *type, void *requirements);
static int place_among(char *const *names, int count, const char *name);
static void copy(Own *own, Side *side, int mode);
static void run(Session *session);
static Type type_of(int element);

void open_litert(Session *session, const Spec *spec)
{
    Own *own = session->own = allocated(sizeof(Own));
    own->library = load_library(spec);
    /* The library does not say which release it is. */
    snprintf(session->runtime, sizeof session->runtime, "%s", spec->runtime);
    CALL(own, LiteRtCreateEnvironment, (int, void *, void **), 0, NULL, &own->environment);
    CALL(own, LiteRtCreateModelFromFile, (void *, const char *, void **), own->environment,
         spec->model, &own->model);
    CALL(own, LiteRtCreateCompiledModel, (void *, void *, void *, void **), own->environment,
         own->model, options_of(own, spec), &own->compiled);
    CALL(own, LiteRtGetModelSignature, (void *, size_t, void **), own->model, 0, &own->signature);
    open_inputs(own, session, spec);
    open_outputs(own, session, spec);
    session->run = run;
}

static void expect(const char *function, int status)
{
    if (status != 0)
        fail(BAD_RUNTIME, "LiteRT: %s failed with status %d", function, status);
}

static void keep(void *payload)
{
    (void)payload;
}

static void *options_of(Own *own, const Spec *spec)
{
    /* Only pointed to, so it stays until the program ends. */
    char *threads = allocated(40);
    void *options, *xnnpack;
    snprintf(threads, 40, "num_threads = %d\n", spec->threads);
    CALL(own, LiteRtCreateOptions, (void **), &options);
    CALL(own, LiteRtSetOptionsHardwareAccelerators, (void *, int), options, CPU);
    CALL(own, LiteRtCreateOpaqueOptions, (const char *, void *, void (*)(void *), void **),
         "xnnpack", threads, keep, &xnnpack);
    CALL(own, LiteRtAddOpaqueOptions, (void *, void *), options, xnnpack);
    return options;
}

static void open_inputs(Own *own, Session *session, const Spec *spec)
{
    size_t count;
    CALL(own, LiteRtGetNumSignatureInputs, (void *, size_t *), own->signature, &count);
    if (count != (size_t)spec->input_count)
        fail(BAD_INPUT, "the model takes %zu inputs, not %d", count, spec->input_count);
    own->inputs.count = (int)count;
    own->inputs.tensors = session->inputs;
    for (size_t index = 0; index < count; index++) {
        const char *name;
        void *handle, *requirements;
        TensorType type;
        CALL(own, LiteRtGetSignatureInputName, (void *, size_t, const char **), own->signature,
             index, &name);
        int place = place_among(spec->inputs, spec->input_count, name);
        CALL(own, LiteRtGetSignatureInputTensorByIndex, (void *, size_t, void **), own->signature,
             index, &handle);
        describe(handle, own, &type, &session->inputs[place]);
        CALL(own, LiteRtGetCompiledModelInputBufferRequirements, (void *, size_t, size_t, void **),
             own->compiled, 0, index, &requirements);
        own->inputs.buffers[index] = buffer_of(own, &type, requirements);
        own->inputs.places[index] = place;
    }
}

static void open_outputs(Own *own, Session *session, const Spec *spec)
{
    size_t count;
    CALL(own, LiteRtGetNumSignatureOutputs, (void *, size_t *), own->signature, &count);
    if (count != (size_t)spec->output_count)
        fail(BAD_INPUT, "the model gives %zu outputs, not %d", count, spec->output_count);
    own->outputs.count = (int)count;
    own->outputs.tensors = session->outputs;
    for (size_t index = 0; index < count; index++) {
        const char *name;
        void *handle, *requirements;
        TensorType type;
        CALL(own, LiteRtGetSignatureOutputName, (void *, size_t, const char **), own->signature,
             index, &name);
        int place = place_among(spec->outputs, spec->output_count, name);
        CALL(own, LiteRtGetSignatureOutputTensorByIndex, (void *, size_t, void **), own->signature,
             index, &handle);
        describe(handle, own, &type, &session->outputs[place]);
        CALL(own, LiteRtGetCompiledModelOutputBufferRequirements,
             (void *, size_t, size_t, void **), own->compiled, 0, index, &requirements);
        own->outputs.buffers[index] = buffer_of(own, &type, requirements);
        own->outputs.places[index] = place;
    }
}

static int place_among(char *const *names, int count, const char *name)
{
    for (int place = 0; place < count; place++)
        if (strcmp(names[place], name) == 0)
            return place;
    fail(BAD_INPUT, "spec.txt does not name the model's tensor %s", name);
}

static void describe(void *handle, Own *own, TensorType *type, Tensor *tensor)
{
    CALL(own, LiteRtGetRankedTensorType, (void *, TensorType *), handle, type);
    tensor->type = type_of(type->element);
    tensor->rank = (int)(type->layout.rank & 0x7f);
    if (tensor->rank > MOST_DIMENSIONS)
        fail(BAD_RUNTIME, "a tensor has %d dimensions", tensor->rank);
    for (int axis = 0; axis < tensor->rank; axis++)
        tensor->shape[axis] = type->layout.dimensions[axis];
    tensor->data = allocated(count_of(tensor) * size_of(tensor->type));
}

static void *buffer_of(Own *own, const TensorType *type, void *requirements)
{
    size_t size;
    void *buffer;
    CALL(own, LiteRtGetTensorBufferRequirementsBufferSize, (void *, size_t *), requirements, &size);
    CALL(own, LiteRtCreateManagedTensorBuffer,
         (void *, int, const TensorType *, size_t, void **), own->environment, HOST_MEMORY, type,
         size, &buffer);
    return buffer;
}

static void run(Session *session)
{
    Own *own = session->own;
    copy(own, &own->inputs, WRITE);
    CALL(own, LiteRtRunCompiledModel, (void *, size_t, size_t, void **, size_t, void **),
         own->compiled, 0, (size_t)own->inputs.count, own->inputs.buffers,
         (size_t)own->outputs.count, own->outputs.buffers);
    copy(own, &own->outputs, READ);
}

static void copy(Own *own, Side *side, int mode)
{
    for (int index = 0; index < side->count; index++) {
        Tensor *tensor = &side->tensors[side->places[index]];
        size_t size = count_of(tensor) * size_of(tensor->type);
        void *there;
        CALL(own, LiteRtLockTensorBuffer, (void *, void **, int), side->buffers[index], &there,
             mode);
        memcpy(mode == WRITE ? there : tensor->data, mode == WRITE ? tensor->data : there, size);
        CALL(own, LiteRtUnlockTensorBuffer, (void *), side->buffers[index]);
    }
}

/* litert_model_types.h, LiteRtElementType. */
static Type type_of(int element)
{
    static const Type types[] = {
        [1] = F32, [2] = I32, [3] = U8, [4] = I64, [6] = BOOL, [7] = I16,
        [9] = I8, [11] = F64, [13] = U64, [16] = U32, [17] = U16,
    };
    Type type = element >= 0 && element < 18 ? types[element] : NONE;
    if (type == NONE)
        fail(BAD_RUNTIME, "a tensor is of TFLite's type %d, which this runner does not know",
             element);
    return type;
}
