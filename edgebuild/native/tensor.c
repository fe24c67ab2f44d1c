/* Numbers of every type that a model takes or gives, read and written as doubles, which hold every
 * integer below 2^53. */
#include "runner.h"

size_t size_of(Type type)
{
    static const size_t sizes[] = {
        [NONE] = 0, [F32] = 4, [F64] = 8, [I8] = 1, [U8] = 1, [I16] = 2, [U16] = 2,
        [I32] = 4, [U32] = 4, [I64] = 8, [U64] = 8, [BOOL] = 1,
    };
    return sizes[type];
}

size_t count_of(const Tensor *tensor)
{
    size_t count = 1;
    for (int axis = 0; axis < tensor->rank; axis++)
        count *= (size_t)tensor->shape[axis];
    return count;
}

double value_at(const Tensor *tensor, size_t index)
{
    switch (tensor->type) {
    case F32: return ((float *)tensor->data)[index];
    case F64: return ((double *)tensor->data)[index];
    case I8: return ((int8_t *)tensor->data)[index];
    case U8:
    case BOOL: return ((uint8_t *)tensor->data)[index];
    case I16: return ((int16_t *)tensor->data)[index];
    case U16: return ((uint16_t *)tensor->data)[index];
    case I32: return ((int32_t *)tensor->data)[index];
    case U32: return ((uint32_t *)tensor->data)[index];
    case I64: return (double)((int64_t *)tensor->data)[index];
    case U64: return (double)((uint64_t *)tensor->data)[index];
    case NONE: break;
    }
    fail(BAD_INPUT, "a tensor's type is none that this runner knows");
}

void set_value(Tensor *tensor, size_t index, double value)
{
    switch (tensor->type) {
    case F32: ((float *)tensor->data)[index] = (float)value; return;
    case F64: ((double *)tensor->data)[index] = value; return;
    case I8: ((int8_t *)tensor->data)[index] = (int8_t)value; return;
    case U8:
    case BOOL: ((uint8_t *)tensor->data)[index] = (uint8_t)value; return;
    case I16: ((int16_t *)tensor->data)[index] = (int16_t)value; return;
    case U16: ((uint16_t *)tensor->data)[index] = (uint16_t)value; return;
    case I32: ((int32_t *)tensor->data)[index] = (int32_t)value; return;
    case U32: ((uint32_t *)tensor->data)[index] = (uint32_t)value; return;
    case I64: ((int64_t *)tensor->data)[index] = (int64_t)value; return;
    case U64: ((uint64_t *)tensor->data)[index] = (uint64_t)value; return;
    case NONE: break;
    }
    fail(BAD_INPUT, "a tensor's type is none that this runner knows");
}
