"""The page's server: what it lets in, what it gives out and when, and what it keeps."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ended, invoke
from pages import OWN, TOKEN, Client, block, serving, write_images
from PIL import Image

from bus_smp.data.images import pixel_sha256, read_image, read_mask
from bus_smp.errors import DataError
from bus_smp.serve.answers import Answer
from bus_smp.serve.guard import HEADERS, LINK_HEADER, TimedProtocol
from bus_smp.serve.records import RECORDS, open_journal, read_records


def test_a_model_s_answer_leaves_only_after_the_own_answer_is_on_the_disk(tmp_path):
    paths = write_images(tmp_path)
    with serving(tmp_path / "to", paths) as page:
        for path in ("answer", "mask/0"):
            assert page.ask(f"/api/cases/c1/0/{path}")[0] == 403
        assert page.ask("/api/cases/c1/0/final", {"answers": OWN | {"agreement": "agree"}})[0] == 422
        assert page.ask("/api/cases/c1/0/own", {"answers": OWN | {"birads": "7"}})[0] == 422
        assert page.ask("/api/cases/c1/0/answer")[0] == 403
        assert page.ask("/api/cases/c1/0/own", {"answers": OWN})[0] == 200
        assert [record["kind"] for record in read_records(tmp_path / "to")] == ["session", "own"]
        status, _, body = page.ask("/api/cases/c1/0/answer")
        assert status == 200 and json.loads(body)[0]["label"] == "malignant"
        # the other images stay closed, and the own answer stays as it was
        assert page.ask("/api/cases/c2/0/answer")[0] == 403
        assert page.ask("/api/cases/c1/0/own", {"answers": OWN | {"class": "malignant"}})[0] == 422
    kinds = [record["kind"] for record in read_records(tmp_path / "to")]
    assert kinds == ["session", "own", "shown"]


def test_without_a_model_no_answer_is_given_out(tmp_path):
    with serving(tmp_path / "to", write_images(tmp_path), mode="none") as page:
        assert page.ask("/api/cases/c1/0/answer")[0] == 403
        assert page.ask("/api/cases/c1/0/final", {"answers": OWN})[0] == 200


def test_a_corrected_outline_is_kept_exactly_and_becomes_a_row_for_make_manifest(tmp_path):
    paths = write_images(tmp_path)
    mask = np.zeros((40, 50), np.uint8)
    mask[8:25, 9:33] = np.random.default_rng(3).integers(0, 3, (17, 24), np.uint8)
    said = OWN | {"class": "malignant", "agreement": "partly", "reason": "too small"}
    with serving(tmp_path / "to", paths, mode="concurrent") as page:
        body = json.dumps({"answers": said}).encode() + b"\n" + mask.tobytes()
        status, _, answer = page.ask("/api/cases/c2/0/final", body)
        assert status == 200, answer
        # left as the model has it: no correction
        unchanged = (
            json.dumps({"answers": said}).encode() + b"\n" + block(None, _picture(paths[0])).mask.tobytes()
        )
        assert page.ask("/api/cases/c1/0/final", unchanged)[0] == 200
        contradiction = json.dumps({"answers": said | {"class": "benign"}}).encode() + b"\n" + mask.tobytes()
        status, _, answer = page.ask("/api/cases/c3/0/final", contradiction)
        assert status == 422 and b"malignant" in answer
    record = [one for one in read_records(tmp_path / "to") if one["kind"] == "final"][0]
    assert record["case"] == pixel_sha256(read_image(paths[1]))
    stored = tmp_path / "to" / record["mask_after"]["file"]
    assert np.array_equal(read_mask([stored], "color", "malignant"), mask)
    assert "DOE" not in (tmp_path / "to" / RECORDS).read_text()
    table = tmp_path / "to" / "corrections.csv"
    accepted = ("--accept", "both-classes", "--split", "test", "--out", tmp_path / "manifests")
    result = invoke("make-manifest", "--csv", table, *accepted)
    assert result.exit_code == 0, result.stderr
    manifest = (tmp_path / "manifests" / "corrections.csv").read_text()
    assert "corrected:r1" in manifest and manifest.count("\n") == 2


def _picture(path):
    class Picture:
        pixels = read_image(path)

    return Picture


def test_hostile_requests_are_refused(tmp_path):
    with serving(tmp_path / "to", write_images(tmp_path)) as page:
        api = "/api/session"
        assert page.ask(api)[0] == 200
        assert page.ask(api, x_bus_smp_link=None)[0] == 401
        assert page.ask(api, x_bus_smp_link="\xff" * 9)[0] == 401
        assert page.ask(api, host="evil.example")[0] == 400
        assert page.ask("/", host="evil.example")[0] == 400
        assert page.ask(api, origin="http://evil.example")[0] == 403
        assert page.ask(api, origin=f"http://127.0.0.1:{page.port}")[0] == 200
        assert page.ask(api, sec_fetch_site="cross-site")[0] == 403
        assert page.ask("/api/files", b"x", content_length="10000000000")[0] == 413
        assert page.ask("/", b"x")[0] == 405
        for path in (
            "/../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/page.js/..%2f..%2fsetup.cfg",
            "/records.jsonl",
        ):
            assert page.ask(path)[0] == 404, path
        for path in ("/api/cases/..%2f..%2fetc/0/image", "/api/cases/c99/0/image", "/api/cases/c1/7/image"):
            assert page.ask(path)[0] in (404, 422), path
        for body in (
            b"",
            b"null",
            b"[" * 100_000,
            b'{"answers": 3}',
            b"\xff",
            b'{"answers": {"lesion": ["yes"]}}',
            b'{"answers": {"lesion": "no", "birads": "1", "confidence": 5, "comment": "\\ud800"}}',
        ):
            assert page.ask("/api/cases/c1/0/own", body)[0] == 422, body[:9]
        assert page.ask("/api/cases/c1/" + "9" * 5000)[0] == 414
        assert page.ask("/api/cases/c1/0/measure", bytes(7))[0] == 422
        assert page.ask("/api/cases/c1/0/measure", bytes([3]) * 2000)[0] == 422
        status, headers, _ = page.ask("/")
        assert status == 200 and HEADERS.items() <= {k.lower(): v for k, v in headers.items()}.items()
        assert "access-control-allow-origin" not in headers
        assert page.ask("/api/cases/c1/0/own", {"answers": OWN, "seconds": {"own": 10**400}})[0] == 200
        said = {"answers": OWN | {"agreement": "agree"}, "base": 0.0}
        assert page.ask("/api/cases/c1/0/final", said)[0] == 422


def test_finding_the_images_of_a_reading_loads_no_torch(tmp_path):
    write_images(tmp_path)
    code = f"import pathlib, sys; from bus_smp.serve.worklist import find_cases; find_cases((pathlib.Path({str(tmp_path)!r}),)); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_upload_ends_at_its_size_and_time(tmp_path):
    with serving(tmp_path / "to", [], most=100_000, longest=1.0) as page:
        with socket.create_connection(("127.0.0.1", page.port)) as slow:
            slow.sendall(_head(page.port, b"Content-Length: 5000\r\n"))
            slow.settimeout(20)
            assert b" 408 " in slow.recv(200)
        with socket.create_connection(("127.0.0.1", page.port)) as endless:
            endless.settimeout(20)
            endless.sendall(_head(page.port, b"Transfer-Encoding: chunked\r\n"))
            with pytest.raises(OSError):
                for _ in range(10_000):
                    endless.sendall(b"4000\r\n" + bytes(0x4000) + b"\r\n")
                    time.sleep(0.0005)
                raise AssertionError("an endless upload was taken")


def _head(port, more):
    lines = f"POST /api/files HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{LINK_HEADER}: {TOKEN}\r\n"
    return lines.encode() + more + b"\r\n"


def test_a_connection_that_never_ends_its_headers_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(TimedProtocol, "patience", 0.2)
    with serving(tmp_path / "to", write_images(tmp_path)) as page:
        for before in (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", page.port), timeout=30) as waiting:
                waiting.sendall(before + b"GET /api/session HTTP/1.1\r\nHost: 127")
                while waiting.recv(100_000):
                    pass
        assert page.ask("/api/session")[0] == 200


def test_a_file_that_is_no_image_is_named_with_the_reason_and_the_others_go_on(tmp_path):
    paths = write_images(tmp_path, 2)
    paths[0].write_bytes(b"no image")
    with serving(tmp_path / "to", paths) as page:
        status, _, body = page.ask("/api/cases/c1/0")
        assert status == 422 and "no PNG" in json.loads(body)["error"] and str(tmp_path) not in body.decode()
        assert page.ask("/api/cases/c2/0")[0] == 200
        assert page.ask("/api/files?name=x.png", b"no image")[0] == 422
        status, _, body = page.ask("/api/files?name=y.png", paths[1].read_bytes())
        assert status == 200
        assert page.ask(f"/api/cases/{json.loads(body)[0]['id']}/0/image")[0] == 200


def test_many_requests_are_answered_busy_not_by_a_crash(tmp_path):
    held = threading.Event()

    def slow(case, picture):
        held.wait(20)
        return block(case, picture)

    paths = write_images(tmp_path, 20)
    with serving(tmp_path / "to", paths, mode="concurrent", gives=(slow,)) as page:
        found = []
        threads = [
            threading.Thread(target=lambda n=n: found.append(page.ask(f"/api/cases/c{n}/0/answer")[0]))
            for n in range(1, 21)
        ]
        for thread in threads:
            thread.start()
        while not found:
            time.sleep(0.02)
        held.set()
        for thread in threads:
            thread.join()
        assert set(found) == {200, 503}
        assert page.ask("/api/cases/c20/0/answer")[0] == 200


def test_a_changed_line_is_found_and_a_line_cut_short_is_removed(tmp_path):
    folder = tmp_path / "to"
    with open_journal(folder) as journal:
        for number in range(4):
            journal.append({"kind": "x", "number": number, "session": "s", "reader": "r"})
    lines = (folder / RECORDS).read_bytes().splitlines(keepends=True)
    for damaged in (
        [lines[0], lines[2], lines[3]],
        [lines[1], lines[0], *lines[2:]],
        [lines[0].replace(b'"number": 0', b'"number": 5'), *lines[1:]],
    ):
        (folder / RECORDS).write_bytes(b"".join(damaged))
        with pytest.raises(DataError, match="changed, removed or put in"):
            read_records(folder)
        with pytest.raises(DataError), open_journal(folder):
            pass
    # as a kill leaves it
    (folder / RECORDS).write_bytes(b"".join(lines)[:-9])
    assert [record["number"] for record in read_records(folder)] == [0, 1, 2]
    with open_journal(folder) as journal:
        assert journal.cut
        journal.append({"kind": "x", "number": 9, "session": "s", "reader": "r"})
        with pytest.raises(DataError, match="another bus-smp serve"), open_journal(folder):
            pass
    assert [record["number"] for record in read_records(folder)] == [0, 1, 2, 9]


def test_serve_refuses_what_would_open_it_to_others_by_mistake(tmp_path):
    assert "--allow-network" in ended(invoke("serve", "--host", "192.0.2.1"), 1)
    assert "one address" in ended(invoke("serve", "--host", "0.0.0.0", "--allow-network"), 1)
    assert "letters" in ended(invoke("serve", "--reader", "../x"), 1)
    assert "--review" in ended(invoke("serve", "x.png", "--review", "m.csv"), 1)


def test_feedback_tells_helped_from_harmed_and_refuses_a_broken_chain(tmp_path):
    paths = write_images(tmp_path, 8)
    for reader, own_class in (("r1", "benign"), ("r2", "malignant")):
        with serving(tmp_path / reader, paths, reader=reader) as page:
            for number in range(1, 9):
                own = OWN | {"class": own_class if number % 2 else "malignant"}
                assert page.ask(f"/api/cases/c{number}/0/own", {"answers": own})[0] == 200
                final = own | {"class": "malignant", "agreement": "agree"}
                sent = {"answers": final, "seconds": {"own": 4, "final": 2}}
                assert page.ask(f"/api/cases/c{number}/0/final", sent)[0] == 200
    # of the four calls that r1 changed to malignant, those of images 1 and 3 became right, of 5 and 7 wrong
    rows = ["image,masks,label,patient_id"]
    for number, path in enumerate(paths, 1):
        Image.fromarray(np.eye(40, 50, number, np.uint8) * 255).save(tmp_path / f"mask{number}.png")
        rows.append(f"{path.name},mask{number}.png,{'malignant' if number < 4 else 'benign'},p{number}")
    (tmp_path / "truth.csv").write_text("\n".join(rows))
    made = invoke(
        "make-manifest", "--csv", tmp_path / "truth.csv", "--split", "test", "--out", tmp_path / "m"
    )
    assert made.exit_code == 0, made.stderr
    result = invoke(
        "feedback", tmp_path / "r1", tmp_path / "r2", "--truth", tmp_path / "m" / "truth.csv", "--json"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    means = {key: one["mean"] for key, one in found["readers"]["r1"]["measures"].items()}
    assert (means["changed"], means["towards"], means["helped"], means["harmed"]) == (0.5, 0.5, 0.25, 0.25)
    assert (means["agree"], means["seconds_own"], means["dice"]) == (1, 4, 1)
    assert found["readers"]["r2"]["measures"]["changed"]["mean"] == 0
    assert found["readers"]["all readers"]["measures"]["helped"]["mean"] == 0.125
    # r2 says malignant throughout: agreement is what chance gives
    assert found["kappa"][0]["kappa"]["mean"] == pytest.approx(0, abs=1e-12)
    assert (tmp_path / "r1" / "readers.png").stat().st_size > 1000
    # the last line has the folder's name
    *shown, _ = invoke("feedback", tmp_path / "r1").stdout.splitlines()
    assert max(map(len, shown)) <= 80 and any("n=8" in line for line in shown)
    lines = (tmp_path / "r1" / RECORDS).read_bytes().splitlines(keepends=True)
    (tmp_path / "r1" / RECORDS).write_bytes(b"".join(lines[:2] + lines[3:]))
    assert "line 3" in ended(invoke("feedback", tmp_path / "r1"), 1)


def test_kappa_is_scikit_learn_s():
    from sklearn.metrics import cohen_kappa_score

    from bus_smp.statistics.readers import cohen_kappa

    a, b = np.random.default_rng(0).integers(0, 3, (2, 40))
    table = np.zeros((3, 3))
    np.add.at(table, (a, b), 1)
    assert cohen_kappa(table.reshape(1, 9))[0] == pytest.approx(cohen_kappa_score(a, b))


def test_a_full_disk_leaves_the_records_as_they_were(tmp_path):
    """The answer is refused with the reason, nothing half is left, and the same answer is taken when there is room."""
    resource = pytest.importorskip("resource")
    paths = write_images(tmp_path, 1)
    with serving(tmp_path / "to", paths) as page:
        before = (tmp_path / "to" / RECORDS).read_bytes()
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limit[1]))
        try:
            status, _, body = page.ask("/api/cases/c1/0/own", {"answers": OWN})
            assert status == 507 and b"full" in body
            assert page.ask("/api/cases/c1/0/answer")[0] == 403
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, handler)
        assert (tmp_path / "to" / RECORDS).read_bytes() == before
        assert page.ask("/api/cases/c1/0/own", {"answers": OWN})[0] == 200


@pytest.mark.slow
def test_a_kill_while_answers_are_stored_leaves_whole_records(tmp_path):
    paths = write_images(tmp_path, 30)
    command = (sys.executable, "-m", "bus_smp", "serve", "--mode", "none", "--no-browser")
    stored = 0
    for _ in range(2):
        process = subprocess.Popen(
            [*command, "--to", tmp_path / "to"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        port, token = re.search(r":(\d+)/#(\S+)", process.stdout.readline()).groups()
        page, key = Client(int(port)), {LINK_HEADER: token}
        ids = [
            json.loads(page.ask("/api/files?name=x", path.read_bytes(), **key)[2])[0]["id"] for path in paths
        ]
        killer = threading.Timer(0.3, process.kill)
        killer.start()
        try:
            for case in ids:
                stored += page.ask(f"/api/cases/{case}/0/final", {"answers": OWN}, **key)[0] == 200
        except OSError:
            pass
        process.wait()
        killer.cancel()
        process.stdout.close()
        kept = [record for record in read_records(tmp_path / "to") if record["kind"] == "final"]
        # the answer under way may be on the disk without its confirmation
        assert 0 < stored <= len(kept) <= stored + 1
        stored = len(kept)


def test_two_runs_are_compared_without_their_names_and_the_vote_finds_the_right_one(tmp_path):
    def empty(case, picture):
        return Answer(np.zeros(picture.pixels.shape[:2], np.uint8), "normal", 0.1)

    paths = write_images(tmp_path, 6)
    with serving(tmp_path / "to", paths, mode="concurrent", gives=(block, empty)) as page:
        sides = []
        for number in range(1, 7):
            place = f"/api/cases/c{number}/0"
            shown = page.ask(f"{place}/answer")[2]
            assert not re.search(b"run[01]|secret|malignant if", shown)
            labels = [one["label"] for one in json.loads(shown)]
            sides.append(labels.index("malignant"))
            for side in (0, 1):
                marked = any(page.ask(f"{place}/mask/{side}")[2])
                assert marked == (labels[side] == "malignant")
            answers = OWN | {"vote": "ab"[sides[-1]], "vote_reason": "finds it"}
            assert page.ask(f"{place}/final", {"answers": answers})[0] == 200
        assert b"run0" not in page.ask("/api/session")[2]
        assert set(sides) == {0, 1}
    found = json.loads(invoke("feedback", tmp_path / "to", "--json").stdout)
    assert found["readers"]["r1"]["votes"] == {"run0": 6}


def test_a_manifest_is_reviewed_without_a_model(tmp_path, manifests):
    table = manifests / "data_manifests" / "busi.csv"
    options = ("--review", table, "--mode", "concurrent", "--no-browser", "--to", tmp_path / "to")
    # a list of all imports goes to stderr, more than a pipe holds
    with (tmp_path / "said").open("w+") as said:
        command = (sys.executable, "-X", "importtime", "-m", "bus_smp", "serve", *options)
        # a shell ignores it in what it starts with &, and processes inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            port, token = re.search(r":(\d+)/#(\S+)", process.stdout.readline()).groups()
            page, key = Client(int(port)), {LINK_HEADER: token}
            case = json.loads(page.ask("/api/session", **key)[2])["cases"][0]["id"]
            shown = json.loads(page.ask(f"/api/cases/{case}/0/answer", **key)[2])
            assert shown[0]["lesions"] and shown[0]["score"] is None and "not a model" in shown[0]["worth"][0]
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        said.seek(0)
        lines = said.read()
    assert process.returncode == 130 and "All stored answers are on the disk" in lines
    assert not re.search(r"\| +torch$", lines, re.MULTILINE)


def test_a_clip_has_its_frames_and_panes_of_a_dicom_file_are_images_of_their_own(tmp_path):
    pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    # 30 frames, whose regions reach outside of the picture: no millimetres
    clip = get_testdata_file("examples_ybr_color.dcm", download=False)
    with serving(tmp_path / "to", [Path(clip)], mode="none") as page:
        about = json.loads(page.ask("/api/cases/c1/29")[2])
        assert about["frames"] == 30 and about["pixel_mm"] is None
        assert page.ask("/api/cases/c1/30")[0] == 422
        images = [page.ask(f"/api/cases/c1/{frame}/image")[2] for frame in (0, 29)]
        assert images[0] != images[1]
        (dropped,) = json.loads(page.ask("/api/files?name=x.dcm", Path(clip).read_bytes())[2])
        assert page.ask(f"/api/cases/{dropped['id']}/29/image")[2] == images[1]
