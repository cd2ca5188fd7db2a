from resource_monitor.admission import Admission, Pressure


def test_admits_down_to_the_floor_and_not_below() -> None:
    admission = Admission(100)
    assert admission.admits(101)
    assert admission.admits(100)
    assert not admission.admits(99)


def test_only_the_first_refusal_begins_a_time_of_shedding() -> None:
    admission = Admission(100)
    assert admission.pressure is Pressure.OK
    assert admission.refused(10.0)
    assert admission.pressure is Pressure.SHEDDING
    assert not admission.refused(10.5)


def test_shedding_ends_once_nothing_was_refused_for_a_second() -> None:
    admission = Admission(100)
    admission.refused(10.0)
    admission.refused(10.5)
    assert not admission.admitted(11.4)
    assert admission.pressure is Pressure.SHEDDING
    assert admission.admitted(11.5)
    assert admission.pressure is Pressure.OK


def test_an_admission_ends_nothing_that_has_not_begun() -> None:
    assert not Admission(100).admitted(10.0)
