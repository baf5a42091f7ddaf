"""Eclipse Paho in Python, with a certificate, over TLS or a WebSocket, in both versions of MQTT.

paho_client.py FOLDER PORT tcp|websockets 3.1.1|5 CLIENT-ID subscribe FILTER COUNT
paho_client.py FOLDER PORT tcp|websockets 3.1.1|5 CLIENT-ID publish TOPIC PAYLOAD

`subscribe` prints `granted QOS` or `refused CODE`, and then COUNT messages as `TOPIC RETAINED PAYLOAD`. `publish` retains
at QoS 1 and prints `acknowledged`. Both print `closed CODE` when the broker ends the connection.
"""

import sys

import paho.mqtt.client as mqtt

folder, port, transport, version, client_id, action, topic, last = sys.argv[1:]
v5 = version == "5"
messages = 0


def say(text):
    print(text, flush=True)


def on_connect(client, userdata, flags, code, properties=None):
    if code != 0:
        say(f"not connected: {code}")
    elif action == "subscribe":
        client.subscribe(topic, qos=1)
    else:
        client.publish(topic, last, qos=1, retain=True)


def on_subscribe(client, userdata, mid, granted, properties=None):
    code = granted[0].value if v5 else granted[0]
    if code >= 0x80:
        say(f"refused {code}")
        client.disconnect()
    else:
        say(f"granted {code}")


def on_message(client, userdata, message):
    global messages
    say(f"{message.topic} {message.retain} {message.payload.decode()}")
    messages += 1
    if messages == int(last):
        client.disconnect()


def on_publish(client, userdata, mid):
    say("acknowledged")
    client.disconnect()


def on_disconnect(client, userdata, code, properties=None):
    if code != 0:
        say(f"closed {code.value if hasattr(code, 'value') else code}")
    client.loop_stop()
    sys.exit(0)


client = mqtt.Client(client_id, protocol=mqtt.MQTTv5 if v5 else mqtt.MQTTv311, transport=transport)
client.tls_set(f"{folder}/ca", f"{folder}/certificate", f"{folder}/key")
if transport == "websockets":
    client.ws_set_options(path="/mqtt")
client.on_connect = on_connect
client.on_subscribe = on_subscribe
client.on_message = on_message
client.on_publish = on_publish
client.on_disconnect = on_disconnect
client.connect("localhost", int(port))
client.loop_forever(retry_first_connection=False)
