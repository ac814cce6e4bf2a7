"""A producer, a queue, and workers that may die; from the checkout:  python -m examples.task_farm [WORKERS]

A worker's request brings its last result, the reply is its next task. An overdue task goes to another worker.
"""

import subprocess
import sys
import time

import zmq

from patterns.fair import FairQueue
from patterns.request_reply import Replier, Requester
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.service import Service
from patterns.zeromq.sockets import make_socket

TASKS, RESULT_S, ASK_AGAIN_S, ROOT, context = 20, 1.0, 2.0, __file__.rpartition("examples")[0], zmq.Context()


def worker(endpoint: str, life: str) -> None:
    """Squares numbers; dies with the last task of its life in its hands."""
    requester: Requester[None] = Requester(first_id=time.time_ns())
    dealer = make_socket(context, zmq.DEALER, frame_max_bytes=1000)
    dealer.connect(endpoint)
    result = ""
    for _ in range(int(life)):  # the queue knows a result by its task: to bring one twice does no harm
        dealer.send(requester.request(result.encode(), None, time.monotonic() + ASK_AGAIN_S)[1])
        if dealer.poll(ASK_AGAIN_S * 1000) and (reply := requester.receive(dealer.recv())):
            task = int(bytes(reply[2]))
            time.sleep(0.05)
            result = f"{task} {task**2}"
        requester.expire(time.monotonic())
    print("a worker dies over its task", flush=True)


def farm(workers: int) -> bool:
    """The producer and the queue; whether all tasks were done."""
    tasks: FairQueue[str] = FairQueue({"again": (1, TASKS), "new": (1, TASKS)})
    given: dict[str, float] = {}  # tasks on the way, and when their results are overdue
    done, idle = {}, []  # results by task; tokens of workers that are owed a task

    def answer(peer: bytes, frame: bytes, body: memoryview, _data: object) -> None:
        task, _, result = bytes(body).decode().partition(" ")
        if given.pop(task, None):
            done[task] = result
        idle.append(service.replier.defer(peer, frame))

    def on_round(now: float) -> None:
        for task in [task for task, overdue_at in given.items() if overdue_at <= now]:
            print(f"no result of task {task} in {RESULT_S:g} s: it is given again", flush=True)
            del given[task]
            tasks.offer("again", task)
        while idle and (taken := tasks.take(1)):
            given[taken[0]] = now + RESULT_S
            service.send(*service.replier.resolve(idle.pop(0), taken[0].encode()))

    service = Service(make_socket(context, zmq.ROUTER, frame_max_bytes=1000), Replier(), answer, print)
    service.socket.bind("tcp://127.0.0.1:*")
    loop = Reactor(lambda: min(given.values(), default=None), on_round, longest_wait_s=0.1)
    loop.add(service.socket, service.drain, 100)
    command = [sys.executable, "-m", "examples.task_farm", service.socket.last_endpoint.decode()]
    processes = [subprocess.Popen([*command, "1000" if at else "4"], cwd=ROOT) for at in range(workers)]
    for number in range(TASKS):
        tasks.offer("new", str(number))
    while len(done) < TASKS and any(process.poll() is None for process in processes):
        loop.run_once()
    for process in processes:
        process.terminate()
        process.wait()
    context.destroy(linger=0)
    print(f"{len(done)} of {TASKS} tasks done: {sorted(map(int, done.values()))}")
    return len(done) == TASKS


if __name__ == "__main__":
    if len(sys.argv) == 3:
        sys.exit(worker(*sys.argv[1:]))
    sys.exit(not farm(int(sys.argv[1]) if sys.argv[1:] else 3))
