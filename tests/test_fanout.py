"""Jobs on Dask workers, without notebooks: errors, deaths and order."""

import os
import signal
import threading
import time

import pytest
from distributed import LocalCluster

from lab.fanout import KILLED, fan_out


def test_every_job_gets_its_own_answer():
    # nested, so that workers get the code and not a name to import
    def square(job):
        return {"square": job["x"] ** 2}

    jobs = [{"x": x} for x in range(20)]
    answers = list(fan_out(square, jobs))
    assert len(answers) == 20
    assert all(answer["square"] == job["x"] ** 2 for job, answer in answers)


def test_an_exception_is_one_sentence_and_the_others_go_on():
    def reciprocal(job):
        return {"value": 1 / job["x"]}

    answers = {
        job["x"]: answer
        for job, answer in fan_out(reciprocal, [{"x": 0}, {"x": 2}])
    }
    assert answers[0] == {"error": "ZeroDivisionError: division by zero"}
    assert answers[2] == {"value": 0.5}


def test_a_job_that_kills_each_worker_is_given_up_alone():
    def deadly(job):
        if job["x"] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"value": job["x"]}

    jobs = [{"x": x} for x in (1, 0, 2, 3)]
    answers = {job["x"]: answer for job, answer in fan_out(deadly, jobs)}
    assert answers.pop(0) == {"error": KILLED}
    assert answers == {x: {"value": x} for x in (1, 2, 3)}


def test_no_jobs_start_no_cluster():
    assert list(fan_out(None, [])) == []


def test_a_lost_scheduler_is_one_sentence():
    def slow(job):
        import time

        time.sleep(60)

    cluster = LocalCluster(n_workers=1, processes=True, dashboard_address=":0")
    threading.Timer(2, cluster.close).start()
    with pytest.raises(ConnectionError, match="the Dask scheduler went away"):
        list(fan_out(slow, [{"x": 1}], scheduler=cluster.scheduler_address))


class Last:
    """Sends a Ctrl-C at the moment when it is destroyed."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("where", ["between jobs", "in a destructor"])
def test_ctrl_c_is_never_lost(where):
    def same(job):
        return job

    before = signal.getsignal(signal.SIGINT)
    seen = []
    with pytest.raises(KeyboardInterrupt):
        for job, _ in fan_out(same, [{"x": x} for x in range(9)], workers=1):
            seen.append(job["x"])
            if len(seen) == 2 and where == "in a destructor":
                Last()
            elif len(seen) == 2:
                signal.raise_signal(signal.SIGINT)
    assert 2 <= len(seen) < 9
    assert signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_ends_a_second_chance(tmp_path):
    def deadly_at_first(job):
        import time

        tries = tmp_path / "tries"
        with tries.open("a") as file:
            file.write("x")
        # as often as Dask itself restarts it
        if tries.stat().st_size <= 4:
            os.kill(os.getpid(), signal.SIGKILL)
        (tmp_path / "alone").touch()
        time.sleep(60)

    def press():
        until = time.monotonic() + 60
        while not (tmp_path / "alone").exists():
            if time.monotonic() > until:
                return
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(fan_out(deadly_at_first, [{"x": 1}], workers=1))
    assert time.monotonic() - begin < 50


def test_jobs_can_be_fanned_out_from_any_thread():
    answers = []

    def run():
        answers.extend(fan_out(lambda job: job, [{"x": 1}], workers=1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert answers == [({"x": 1}, {"x": 1})]
