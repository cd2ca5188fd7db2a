import errno
import pickle

from resource_monitor.errors import ConfigurationError, NotApplicable, ProbeError, ResourceMonitorError


def test_every_error_has_the_one_base() -> None:
    assert issubclass(ConfigurationError, ResourceMonitorError)
    assert issubclass(NotApplicable, ResourceMonitorError)
    assert issubclass(ProbeError, ResourceMonitorError)


def test_a_setting_that_cannot_be_used_is_a_value_error_too() -> None:
    assert issubclass(ConfigurationError, ValueError)


def test_a_probe_error_names_the_path_and_the_kernels_reason() -> None:
    error = ProbeError.from_errno("/proc/meminfo", errno.EACCES)
    assert str(error) == "/proc/meminfo: cannot be read: Permission denied"
    assert error.path == "/proc/meminfo"


def test_a_probe_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ProbeError("/x", "is gone")))
    assert (error.path, error.problem, str(error)) == ("/x", "is gone", "/x: is gone")
