"""Networks are trained for as many steps as there is time for."""

from __future__ import annotations

import pytest

from edgebuild.search.training import Training, teachers_share


def test_a_first_training_is_long_enough_to_tell_something_where_there_is_time() -> None:
    hurried = Training(first=10.0, most=30.0, step=0.3)
    patient = Training(first=10.0, most=300.0, step=0.3)
    assert hurried.first_steps(1.0) == 100
    assert patient.first_steps(1.0) == 200
    assert patient.most_steps(1.0) == 800


@pytest.mark.parametrize(("work", "teacher"), [(0.08, 0.5), (0.3, 0.0), (0.25, 1.0)])
def test_what_a_student_takes_tells_the_teachers_share(work: float, teacher: float) -> None:
    step = 0.1
    student = step * (teacher + (1 - teacher) * work)
    found = teachers_share(step, student, work)
    assert found == pytest.approx(teacher)
    assert Training(step=step, teacher=found).seconds(200, work) == pytest.approx(200 * student)


def test_a_student_that_seems_slower_than_the_network_is_none_cheaper() -> None:
    assert teachers_share(0.1, 0.2, 0.1) == 1.0
    assert teachers_share(0.1, 0.001, 0.5) == 0.0
