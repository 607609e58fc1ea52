"""What is taken for a secret, and what must stay readable."""

from pathlib import Path

import pytest

from inspectd.masking import credentials_in, holds_secret, mask

CONFIG = Path(__file__).parent.parent / "config"


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        ("device: rtsp://admin:hunter2@10.0.0.7/stream", ["hunter2", "admin"]),
        ("device: 'rtsp://admin:p@ss/w0rd@10.0.0.7/stream'", ["p@ss", "w0rd"]),
        ('device: "rtsp://admin:it\'s@camera/1"', ["it's"]),
        ("# the camera is admin:hunter2@camera7", ["hunter2"]),
        ("# password: hunter2 (old)", ["hunter2"]),
        ("mqtt: {password: hunter2, host: plant}", ["hunter2"]),
        ('{"client_secret" : "hunter2"}', ["hunter2"]),
        ("Environment=MQTT_PASSWORD=hunter2", ["hunter2"]),
        ("GET /snapshot?user=a&token=abc123", ["abc123"]),
        ("Authorization: Basic aHVudGVyMg==", ["aHVudGVyMg"]),
        ("api-key = 42aa42aa", ["42aa42aa"]),
        ("mosquitto_sub -u scada -P hunter2 -t x", ["hunter2"]),
        ("mosquitto_pub -h plant -P 'hunter 2' -u scada", ["hunter", "2'"]),
        ("mosquitto_sub -h plant -u scada \\\n    -P hunter2 -v", ["hunter2"]),
        ("mosquitto_rr -u scada --pw hunter2", ["hunter2"]),
        ("mqtt sub -u scada --password hunter2", ["hunter2"]),
        ("curl -u admin:hunter2 http://camera/", ["hunter2", "admin"]),
        ("curl -s --user 'admin:hunter 2' http://camera/", ["hunter", "2'"]),
        ("# pw: hunter2", ["hunter2"]),
        ("# broker pass: hunter2", ["hunter2"]),
        ("# broker pass: 4711", ["4711"]),
        ("# Pass = hunter2", ["hunter2"]),
        ("Environment=MQTT_PASS=4711", ["4711"]),
        ("# Passwort: hunter2", ["hunter2"]),
        ("# das Kennwort: hunter2", ["hunter2"]),
        ("mqtt:\n  password: |\n    hunter2\n\n    letmein7\n  port: 1\n", ["hunter2", "letmein7"]),
        ("#  password: >-\n#    hunter2\n#  port: 1\n", ["hunter2"]),
        ("- pw: |\n    hunter2", ["hunter2"]),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", ["MIIEow"]),
        ("-----BEGIN PRIVATE KEY-----\nMIIEow\nand cut short", ["MIIEow", "cut short"]),
    ],
)
def test_secrets_by_their_form(text: str, secrets: list[str]):
    assert holds_secret(text)
    for secret in secrets:
        assert secret in text
        assert secret not in mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "password_file: tls/password",
        "mqtt.password_file: /etc/inspectd/password is empty; write the password into it",
        "/etc/inspectd/credentials/default.mqtt-password: Permission denied",
        "the broker refuses user name or password",
        '{"by_verdict": {"PASS": 7, "FAIL": 1}, "pass": 12}',
        "verdict PASS: score 0.4",
        "$ nice /opt/python -P -m inspectd check -c /etc/inspectd/default.yaml",
        "ssh -P 22; scp -P 2222 host:file",
        "journalctl -f -u inspectd@default.service",
        "mosquitto_sub -h plant -p 8883 -u scada -v -t 'inspectd/+/result'",
        "curl --pass-file x --cacert ca.pem https://camera/",
        "bypass: rigid, compass: 4, passes: 3",
        "description: |\n  27 pins in 3 rows\n",
        "--password-file /etc/inspectd/password",
        "2026-01-01T06:30:00+0000 pi inspectd[7]: judging",
        "inspectd@default.service: main process exited",
        "https://example.org/a/b?c=d",
        "key: /etc/inspectd/tls/key.pem",
        "broker.plant:8883 lets the station in, as cell3, TLSv1.3",
        '"keep": ["FAIL"], "passed": 17, "tokens_left": ""'.replace('"tokens_left"', '"left"'),
    ],
)
def test_what_is_no_secret_stays(text: str):
    assert mask(text) == text
    assert not holds_secret(text)


def test_what_stands_around_a_secret_stays():
    text = "mqtt:\n  password: |\n    hunter2\n\n    letmein7\n  port: 1883\n"
    assert mask(text) == "mqtt:\n  password: ***\n  port: 1883\n"
    text = "mosquitto_sub -h plant -u scada -P hunter2 -t x"
    assert mask(text) == "mosquitto_sub -h plant -u scada -P *** -t x"
    assert mask("curl -u admin:hunter2 http://camera/") == "curl -u *** http://camera/"


def test_json_stays_json():
    text = '{"token": "a\\"b, c", "host": "x", "password": "d"}\n'
    assert mask(text) == '{"token": "***", "host": "x", "password": "***"}\n'
    # Where the quotes do not tell the end, the whole line goes.
    assert mask("{password: 'it''s', host: x}") == "{password: ***"
    assert mask('password: "it\'s", host: x') == "password: ***"


def test_the_example_settings_hold_none():
    files = list(CONFIG.rglob("*.yaml"))
    assert len(files) >= 3
    for file in files:
        assert not holds_secret(file.read_text()), file


def test_secrets_by_their_content():
    text = 'it said: correct horse; correct%20horse; "say \\"x\\" now"; MIIE1234'
    masked = mask(text, ["correct horse\n", 'say "x" now', "BEGIN\nMIIE1234\nEND"])
    assert masked == 'it said: ***; ***; "***"; ***'
    assert mask("abc", ["abc", "", "\n"]) == "abc", "so short a secret would be everywhere"


def test_credentials_are_found_to_be_masked_elsewhere():
    text = "device: rtsp://admin:hun%20ter2@camera/1"
    assert set(credentials_in(text)) == {"admin:hun%20ter2", "admin", "hun%20ter2"}
    assert (
        mask("password was hun ter2 for admin", credentials_in(text)) == "password was *** for ***"
    )
