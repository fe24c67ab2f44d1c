/* A session of onnxruntime on the CPU, through its C API.
 *
 * The wheel brings the library without headers. Its interface is one table of functions that is
 * only ever appended to (onnxruntime_c_api.h, OrtApi); the places of those that are used stand
 * below. Version 8 of the table, of onnxruntime 1.8, has them all.
 */
#include <stdio.h>
#include <string.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "runner.h"

enum { API_VERSION = 8, ERRORS_ONLY = 3, ARENA = 1, DEFAULT_MEMORY = 0 };

enum {
    GetErrorMessage = 2,
    CreateEnv = 3,
    CreateSession = 7,
    Run = 9,
    CreateSessionOptions = 10,
    SetSessionLogSeverityLevel = 22,
    SetIntraOpNumThreads = 24,
    SetInterOpNumThreads = 25,
    SessionGetInputCount = 30,
    SessionGetInputTypeInfo = 33,
    SessionGetInputName = 36,
    CreateTensorWithDataAsOrtValue = 49,
    GetTensorMutableData = 51,
    CastTypeInfoToTensorInfo = 55,
    GetTensorElementType = 60,
    GetDimensionsCount = 61,
    GetDimensions = 62,
    GetTensorTypeAndShape = 65,
    CreateCpuMemoryInfo = 69,
    GetAllocatorWithDefaultOptions = 78,
    ReleaseValue = 96,
    ReleaseTensorTypeAndShapeInfo = 99,
    AddSessionConfigEntry = 130,
};

/* Keeps sums in 16 bits from saturating, and makes integers twice as slow. */
#define WITHOUT_VNNI "session.x64quantprecision"

typedef void (*Function)(void);
typedef void *Status;

typedef struct {
    const Function *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} Base;

typedef struct {
    void *session, *memory;
    const char *input_names[MOST_TENSORS];
    const char *output_names[MOST_TENSORS];
    void *inputs[MOST_TENSORS], *outputs[MOST_TENSORS];
    int input_count, output_count;
} Own;

static const Function *api;

/* Calls the function at a place of the table, whose parameters have the types in parentheses. */
#define CALL(place, types, ...) expect(((Status(*) types)api[place])(__VA_ARGS__))

static void expect(Status status);
static void *options_of(const Spec *spec);
static int has_vnni(void);
static void bind_input(Session *session, size_t place, int index);
static int place_of(Own *own, const char *name);
static void run(Session *session);
static void describe(void *info, Tensor *tensor);
static void describe_and_release(void *value, Tensor *tensor);
static Type type_of(int element);

void open_onnxruntime(Session *session, const Spec *spec)
{
    const Base *(*base)(void) = (const Base *(*)(void))symbol(load_library(spec), "OrtGetApiBase");
    Own *own = session->own = allocated(sizeof(Own));
    void *environment;
    snprintf(session->runtime, sizeof session->runtime, "onnxruntime %s",
             base()->GetVersionString());
    api = base()->GetApi(API_VERSION);
    if (api == NULL)
        fail(BAD_RUNTIME, "%s has no interface %d", session->runtime, API_VERSION);
    CALL(CreateEnv, (int, const char *, void **), ERRORS_ONLY, "edgebuild", &environment);
    CALL(CreateSession, (void *, const char *, void *, void **), environment, spec->model,
         options_of(spec), &own->session);
    CALL(CreateCpuMemoryInfo, (int, int, void **), ARENA, DEFAULT_MEMORY, &own->memory);
    for (int index = 0; index < spec->output_count; index++)
        own->output_names[index] = spec->outputs[index];
    own->input_count = spec->input_count;
    own->output_count = spec->output_count;
    for (int index = 0; index < spec->input_count; index++) {
        own->input_names[index] = spec->inputs[index];
        bind_input(session, (size_t)place_of(own, spec->inputs[index]), index);
    }
    session->run = run;
}

static void expect(Status status)
{
    if (status != NULL)
        fail(BAD_RUNTIME, "onnxruntime: %s",
             ((const char *(*)(Status))api[GetErrorMessage])(status));
}

/* As run.py sets them. */
static void *options_of(const Spec *spec)
{
    void *options;
    CALL(CreateSessionOptions, (void **), &options);
    CALL(SetIntraOpNumThreads, (void *, int), options, spec->threads);
    CALL(SetInterOpNumThreads, (void *, int), options, 1);
    CALL(SetSessionLogSeverityLevel, (void *, int), options, ERRORS_ONLY);
    for (int index = 0; index < spec->setting_count; index++)
        if (strcmp(spec->setting_keys[index], WITHOUT_VNNI) != 0 || !has_vnni())
            CALL(AddSessionConfigEntry, (void *, const char *, const char *), options,
                 spec->setting_keys[index], spec->setting_values[index]);
    return options;
}

/* Whether bytes are multiplied into sums of 32 bits: CPUID leaf 7, AVX512_VNNI and AVX-VNNI. */
static int has_vnni(void)
{
#ifdef __x86_64__
    unsigned a, b, c, d;
    int has_wide = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 11 & 1);
    return has_wide || (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1));
#else
    return 0;
#endif
}

/* The model's own order of inputs may be another than the network's. */
static int place_of(Own *own, const char *name)
{
    void *allocator;
    size_t count;
    CALL(GetAllocatorWithDefaultOptions, (void **), &allocator);
    CALL(SessionGetInputCount, (void *, size_t *), own->session, &count);
    for (size_t place = 0; place < count; place++) {
        char *found;
        CALL(SessionGetInputName, (void *, size_t, void *, char **), own->session, place, allocator,
             &found);
        if (strcmp(found, name) == 0)
            return (int)place;
    }
    fail(BAD_INPUT, "the model has no input %s", name);
}

/* Gives the runtime memory of ours, which every run reads. */
static void bind_input(Session *session, size_t place, int index)
{
    Own *own = session->own;
    Tensor *tensor = &session->inputs[index];
    void *kind, *info;
    int element;
    CALL(SessionGetInputTypeInfo, (void *, size_t, void **), own->session, place, &kind);
    CALL(CastTypeInfoToTensorInfo, (void *, void **), kind, &info);
    CALL(GetTensorElementType, (void *, int *), info, &element);
    describe(info, tensor);
    size_t size = count_of(tensor) * size_of(tensor->type);
    tensor->data = allocated(size);
    CALL(CreateTensorWithDataAsOrtValue,
         (void *, void *, size_t, const int64_t *, size_t, int, void **), own->memory, tensor->data,
         size, tensor->shape, (size_t)tensor->rank, element, &own->inputs[index]);
}

static void run(Session *session)
{
    Own *own = session->own;
    for (int index = 0; index < own->output_count; index++) {
        /* Given back, so that every run allocates: as in run.py, whose arrays are new each time. */
        if (own->outputs[index] != NULL)
            ((void (*)(void *))api[ReleaseValue])(own->outputs[index]);
        own->outputs[index] = NULL;
    }
    CALL(Run,
         (void *, void *, const char *const *, void *const *, size_t, const char *const *, size_t,
          void **),
         own->session, NULL, own->input_names, own->inputs, (size_t)own->input_count,
         own->output_names, (size_t)own->output_count, own->outputs);
    for (int index = 0; index < own->output_count; index++)
        describe_and_release(own->outputs[index], &session->outputs[index]);
}

static void describe_and_release(void *value, Tensor *tensor)
{
    void *info;
    CALL(GetTensorTypeAndShape, (void *, void **), value, &info);
    describe(info, tensor);
    CALL(GetTensorMutableData, (void *, void **), value, &tensor->data);
    ((void (*)(void *))api[ReleaseTensorTypeAndShapeInfo])(info);
}

static void describe(void *info, Tensor *tensor)
{
    int element;
    size_t rank;
    CALL(GetTensorElementType, (void *, int *), info, &element);
    CALL(GetDimensionsCount, (void *, size_t *), info, &rank);
    if (rank > MOST_DIMENSIONS)
        fail(BAD_RUNTIME, "a tensor has %zu dimensions", rank);
    CALL(GetDimensions, (void *, int64_t *, size_t), info, tensor->shape, rank);
    tensor->type = type_of(element);
    tensor->rank = (int)rank;
}

/* onnxruntime_c_api.h, ONNXTensorElementDataType. */
static Type type_of(int element)
{
    static const Type types[] = {
        [1] = F32, [2] = U8, [3] = I8, [4] = U16, [5] = I16, [6] = I32,
        [7] = I64, [9] = BOOL, [11] = F64, [12] = U32, [13] = U64,
    };
    Type type = element >= 0 && element < 14 ? types[element] : NONE;
    if (type == NONE)
        fail(BAD_RUNTIME, "a tensor is of ONNX's type %d, which this runner does not know", element);
    return type;
}
