"""lmms-eval asks the embedded model through the plug-in: the log says what came of it."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file

import videonsa
from tests_lmms.tiny import command, run, samples, write_tasks, write_video
from videonsa.errors import UsageError
from videonsa.evals.field.sample_log import read_samples
from videonsa.inference.context import Context
from videonsa.inference.messages import ImagePart, Message, VideoPart, session_for

EMBEDDED = Path(videonsa.__file__).parent / "assets/embedded"
QUESTIONS = ("What moves?", "Where is it?", "What is red?", "How many?")
METHODS = ("dense", "nsa:block_size=32,window_size=64", "fastv+nsa", "minference")


def row(number: int, video: Path | str, other: Path | str) -> dict[str, object]:
    return {
        "number": number,
        "video": str(video),
        "other": str(other),
        "question": QUESTIONS[number % len(QUESTIONS)],
        "answer": "A",
        "right": 1,
    }


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    first = write_video(folder / "first.mp4", num_frames=8, bright=250)
    return first, write_video(folder / "second.mp4", num_frames=6, bright=120)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, videos):
    first, second = videos
    rows = [row(number, first if number < 4 else second, second) for number in range(7)]
    return write_tasks(tmp_path_factory.mktemp("tasks") / "tiny", rows)


def evaluate(tasks, log, task="tiny", *, more="", **options):
    return simple_evaluate(
        model="videonsa",
        model_args=f"pretrained=embedded,device=cpu,log={log}{more}",
        tasks=[task],
        task_manager=TaskManager(include_path=str(tasks)),
        batch_size=options.pop("batch_size", 1),
        log_samples=False,
        process_docs_parallel=1,
        **options,
    )


@pytest.fixture(scope="module")
def whole(tasks, tmp_path_factory):
    """The log of one undisturbed run."""
    log = tmp_path_factory.mktemp("whole") / "log"
    done = run(tasks, f"pretrained=embedded,device=cpu,log={log}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "tiny_acc" in done.stdout
    return samples(log)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_answers_as_a_session_does(tasks, videos, tmp_path, method):
    found = evaluate(tasks, tmp_path / "log", more=f',method="{method}",max_num_frames=6')
    lines = read_samples(tmp_path / "log")
    assert [line.doc_id for line in lines] == list(range(7))
    right = [("A" in line.answer) for line in lines]
    assert found["results"]["tiny"]["tiny_acc,none"] == pytest.approx(sum(right) / 7)
    qa = videonsa.load("embedded", method=method, device="cpu")
    for line in lines[:5:4]:
        video = VideoPart(source=str(videos[line.doc_id // 4]), changes={"num_frames": 6})
        text = QUESTIONS[line.doc_id % 4]
        conversation = session_for(qa, [Message("user", [video, text])])
        answer = conversation.session.ask(conversation.question, max_new_tokens=6, temperature=0.0)
        assert line.answer == answer.text
        assert line.prompt_tokens == answer.usage.prompt_tokens
        assert (line.method, line.density) == (
            qa.model.method.full_name,
            answer.usage.computed.attention,
        )
        assert len(line.vision[0].seconds) == 6
    assert max(line.cached_tokens for line in lines) > 0 or qa.model.method.full_name != "nsa"


def test_the_same_run_twice_gives_the_same_log(tasks, tmp_path, whole):
    evaluate(tasks, tmp_path / "log")
    assert samples(tmp_path / "log") == whole


def test_questions_side_by_side_give_the_same_log(tasks, tmp_path, whole):
    evaluate(tasks, tmp_path / "log", batch_size=3)
    assert samples(tmp_path / "log") == whole


def test_a_run_that_is_killed_goes_on(tasks, tmp_path, whole):
    log = tmp_path / "log"
    args = f"pretrained=embedded,device=cpu,log={log}"
    file = log / "samples-0.jsonl"
    process = subprocess.Popen(
        command(tasks, args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 200
    while time.monotonic() < end and not (file.exists() and file.read_bytes().count(b"\n") >= 2):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = file.read_bytes()
    assert 2 <= left.count(b"\n") < 7
    file.write_bytes(left[:-30])  # as if it had been killed while it wrote
    done = run(tasks, args)
    assert done.returncode == 0, done.stderr[-3000:]
    assert samples(log) == whole


def test_two_processes_give_the_log_of_one(tasks, tmp_path, whole, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # accelerate launch starts one on CPUs alone
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = run(tasks, f"pretrained=embedded,log={log}", launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in log.glob("samples-*")) == [
        "samples-0.jsonl",
        "samples-1.jsonl",
    ]
    written = b"".join(path.read_bytes() for path in log.glob("samples-*"))
    assert written.count(b"\n") == 7  # what fills up the second's share is not logged
    assert samples(log) == whole


def test_what_cannot_be_read_leaves_the_others_intact(videos, tmp_path, whole):
    first, second = videos
    broken, endless = tmp_path / "broken.mp4", tmp_path / "endless.ts"
    broken.write_bytes(os.urandom(5000))
    write_video(endless, num_frames=8, bright=200, kind="mpegts")
    os.truncate(endless, 2**40)  # zeros without end, for whoever looks for the next frame
    wrong = [broken, tmp_path / "gone.mp4", endless, "the task ends the process"]
    rows = [row(0, first, second), *(row(1 + i, video, second) for i, video in enumerate(wrong))]
    rows.append(row(4, second, second))
    tasks = write_tasks(tmp_path / "tasks", rows)
    evaluate(tasks, tmp_path / "log", more=",time_limit=8")
    lines = read_samples(tmp_path / "log")
    assert [line.failure is None for line in lines] == [True, False, False, False, False, True]
    assert "no such file" in lines[2].failure
    assert "not read in 8 s" in lines[3].failure
    assert "the task cannot ask it: SystemExit: video is missing" in lines[4].failure
    assert all("\n" not in line.failure for line in lines[1:5])
    assert [line.answer for line in (lines[0], lines[5])] == [whole[0].answer, whole[4].answer]
    evaluate(tasks, tmp_path / "log", more=",time_limit=8")  # failures stay as they are
    assert read_samples(tmp_path / "log") == lines


def test_interleaved_images_and_two_videos_give_the_prompt_of_session_for(tasks, videos, tmp_path):
    from PIL import Image

    evaluate(tasks, tmp_path / "log", "tiny_mixed")
    line = read_samples(tmp_path / "log")[1]
    first, second = videos
    parts = [
        "First: ",
        VideoPart(source=str(first), start=0.5, end=1.5),
        ImagePart(source=Image.new("RGB", (84, 56), (1, 0, 0))),
        " and then ",
        VideoPart(source=str(second)),
        QUESTIONS[1],
    ]
    qa = videonsa.load("embedded", device="cpu")
    told = [Message("system", ["Look well."]), Message("user", parts)]
    conversation = session_for(qa, told)
    ids = torch.tensor(conversation.prompt_ids())
    import hashlib

    assert line.prompt_sha256 == hashlib.sha256(ids.numpy().astype("<i8").tobytes()).hexdigest()
    assert [one.kind for one in line.vision] == ["video", "image", "video"]
    assert line.vision[0].seconds == (0.5, 1.0)
    answer = conversation.session.ask(conversation.question, max_new_tokens=6, temperature=0.0)
    assert line.answer == answer.text


def test_texts_are_weighed_and_the_likeliest_is_taken(tasks, videos, tmp_path):
    found = evaluate(tasks, tmp_path / "log", "tiny_weighed", force_simple=True)
    lines = read_samples(tmp_path / "log")
    assert len(lines) == 14 and {line.request for line in lines} == {"loglikelihood"}
    qa = videonsa.load("embedded", device="cpu")
    chosen = []
    for doc_id in (0, 4):
        video = str(videos[doc_id // 4])
        conversation = session_for(qa, [Message("user", [VideoPart(source=video), QUESTIONS[0]])])
        seen = qa.encode(video, qa.sampling).vision(qa.shape.vision)
        scores = []
        for line in lines[2 * doc_id : 2 * doc_id + 2]:
            ids = qa.tokenizer.encode(line.answer)
            context = Context(qa.model)
            passage = context.passage([*conversation.prompt_ids(), *ids], [seen])
            with torch.inference_mode():
                whole = qa.model(
                    input_ids=passage.ids, inputs_embeds=passage.embeds, rows=passage.rows
                )
            logs = whole.logits[0, -len(ids) - 1 : -1].float().log_softmax(-1)
            scores.append(float(logs.gather(1, torch.tensor(ids)[:, None]).sum()))
            assert line.log_probability == pytest.approx(scores[-1], abs=1e-3)
        chosen.append(scores[1] > scores[0])
    by_doc = [lines[2 * i].log_probability < lines[2 * i + 1].log_probability for i in range(7)]
    assert [by_doc[0], by_doc[4]] == chosen
    assert found["results"]["tiny_weighed"]["acc,none"] == pytest.approx(sum(by_doc) / 7)


def test_several_rounds_are_asked_and_logged(tasks, tmp_path):
    evaluate(tasks, tmp_path / "log", "tiny_rounds")
    lines = read_samples(tmp_path / "log")
    assert [(line.doc_id, line.round) for line in lines[:4]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert lines[1].messages[-1].parts[-1].text == f"You said {lines[0].answer!r}. Sure?"
    assert {line.request for line in lines} == {"rounds"}


def test_arguments_and_logs_of_another_kind_are_refused_in_one_line(tasks, tmp_path):
    model = get_model("videonsa")
    for given, reason in (
        ("attention=nsa", "attention: no argument of --model videonsa, which takes pretrained"),
        ("max_num_frames=many", "max_num_frames='many': want an int"),
        ("method=nsa:block_size=8.5", "block_size"),
    ):
        with pytest.raises(UsageError, match=reason) as error:
            model.create_from_arg_string(given)
        assert "\n" not in str(error.value)
    evaluate(tasks, tmp_path / "log")
    for more, told in (
        (",max_num_frames=4", "max_num_frames=None, not 4"),
        (',method="nsa:window_size=8"', r"method_parameters\.window_size=16, not 8"),
    ):
        with pytest.raises(UsageError, match=f"holds a run with {told}"):
            evaluate(tasks, tmp_path / "log", more=more)
    with pytest.raises(UsageError, match="tiny/test/0 asked with max_new_tokens 6, not 4"):
        evaluate(tasks, tmp_path / "log", gen_kwargs="max_new_tokens=4")


def test_a_log_of_other_weights_by_the_same_name_is_refused(tasks, tmp_path):
    model, log = tmp_path / "model", tmp_path / "log"
    shutil.copytree(EMBEDDED, model)
    evaluate(tasks, log, more=f",pretrained={model}")
    evaluate(tasks, log, more=f",pretrained={model}")
    tensors = load_file(model / "model.safetensors")
    save_file({name: one * 1.01 for name, one in tensors.items()}, model / "model.safetensors")
    with pytest.raises(UsageError, match=r"holds a run with weights_digest='[0-9a-f]{32}', not"):
        evaluate(tasks, log, more=f",pretrained={model}")
