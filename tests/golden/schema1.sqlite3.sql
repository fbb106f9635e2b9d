PRAGMA auto_vacuum = 2;
PRAGMA application_id = 1094994757;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE codecs (
  id          INTEGER PRIMARY KEY,
  fingerprint TEXT    NOT NULL UNIQUE
) STRICT;
INSERT INTO "codecs" VALUES(0,'');
INSERT INTO "codecs" VALUES(1,'google-adk 2.13.0, google-genai 2.34.0, pydantic 2.14.3, fields 53f8c524032daade');
CREATE TABLE events (
  position       INTEGER PRIMARY KEY AUTOINCREMENT,
  stream_id      INTEGER NOT NULL REFERENCES streams (id),
  version        INTEGER NOT NULL,
  event_id       TEXT    NOT NULL,
  type           TEXT    NOT NULL,
  schema_version INTEGER NOT NULL,
  recorded_at    INTEGER NOT NULL,
  timestamp      REAL    NOT NULL,
  author         TEXT    NOT NULL,
  invocation_id  TEXT    NOT NULL,
  codec          INTEGER NOT NULL REFERENCES codecs (id),
  encoding       INTEGER NOT NULL,
  delta_digest   BLOB,
  data_digest    BLOB,
  chain          BLOB    NOT NULL,
  delta          TEXT,
  data           TEXT,
  UNIQUE (stream_id, version),
  UNIQUE (stream_id, event_id)
) STRICT;
INSERT INTO "events" VALUES(1,3,1,'00000000-0000-0000-0000-000000000002','session_created',1,1700000000750000,1700000000.125,'','',0,1,X'F30AFC1CE64B7E00DAD580A05639C4D182A2ACBFFFD45512A52801AF8330AFCE',X'B984736FFB8E7E3A4D2931A21795CEB5AD9C69213D0B19D1A13CA1CB675D40AF',X'19D2F37F67DB0E41F449004BF1B831972DD7B89E9BF711783B2BBDBDFCE9558B','{"session":{"first":1},"user":{"name":"before"},"app":{"a":{"deep":[null]}}}','{"stream":{"kind":"session","app_name":"golden","user_id":"user","session_id":"s-1","nonce":"00000000000000000000000000000005"}}');
INSERT INTO "events" VALUES(2,3,2,'s-1-1','adk_event',1,1700000001000000,1.70000000112345600123e+09,'user','i-1',1,1,X'C57A912F565988543085B53A68992AE5E527FD26E5926CFB6567C9FC227338A2',X'79EC62402CB10C093C5574B51B645C3CE0DDFC88015C7441718CE7046118F2FB',X'2A518FFA19E53689FF75E3471866E4C25CF6AD15A9DA226107E1CC674741A4BE','{"session":{"k":{"list":[1,2.5,null,true,"é"]},"":"an empty key","quo\"ted":-0.0,"gone":null,"big":1180591620717411303424,"tiny":5e-324},"user":{"name":"ünï"},"app":{"seen":["i-1"]}}','{"content":{"parts":[{"text":"Grüße, \"мир\" 🜁 \n"}],"role":"user"},"invocationId":"i-1","author":"user","actions":{"artifactDelta":{},"requestedAuthConfigs":{},"requestedToolConfirmations":{}},"nodeInfo":{"path":""},"id":"s-1-1","timestamp":1700000001.123456}');
INSERT INTO "events" VALUES(3,3,3,'s-1-2','adk_event',1,1700000001249999,1.70000000212345600122e+09,'agent','i-1',1,1,NULL,X'5B4E7974F098D6185356BBB6C3C2B7BD34F99217E484345275F6E6DD73B04C50',X'E63B8E0156DB04A62E6F0D756CBE25D72E3068E41C0C1899B52466B2F293F527',NULL,'{"modelVersion":"model-1","content":{"parts":[{"text":"thinking","thought":true,"thoughtSignature":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0-P0BBQkNERUZHSElKS0xNTk9QUVJTVFVWV1hZWltcXV5fYGFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6e3x9fn-AgYKDhIWGh4iJiouMjY6PkJGSk5SVlpeYmZqbnJ2en6ChoqOkpaanqKmqq6ytrq-wsbKztLW2t7i5uru8vb6_wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX2Nna29zd3t_g4eLj5OXm5-jp6uvs7e7v8PHy8_T19vf4-fr7_P3-_w=="},{"text":"said"}],"role":"model"},"groundingMetadata":{"webSearchQueries":["q"]},"turnComplete":true,"finishReason":"STOP","customMetadata":{"nested":{"none":null,"list":[[],{}]},"é":1},"usageMetadata":{"candidatesTokenCount":20,"promptTokenCount":10,"promptTokensDetails":[{"modality":"TEXT","tokenCount":10}],"thoughtsTokenCount":5,"totalTokenCount":30},"avgLogprobs":-0.25,"citationMetadata":{"citations":[{"endIndex":2,"startIndex":1,"uri":"https://example.com"}]},"invocationId":"i-1","author":"agent","actions":{"artifactDelta":{},"requestedAuthConfigs":{},"requestedToolConfirmations":{}},"nodeInfo":{"path":""},"branch":"agent.helper","id":"s-1-2","timestamp":1700000002.123456}');
INSERT INTO "events" VALUES(4,3,4,'s-1-3','adk_event',1,1700000001500000,1.70000000312345600126e+09,'agent','i-1',1,1,NULL,X'A176B865CD20AAE51F89F3E778F01437B3B4254F252E45937D32AE6ECFCB513B',X'F177F8199BA2B34D0D071C854435F31EDE9CC7050AF0CA281509EE744DDC3389',NULL,'{"content":{"parts":[{"functionCall":{"id":"f-1","args":{"a":[1,null],"b":{}},"name":"f"}}],"role":"model"},"invocationId":"i-1","author":"agent","actions":{"artifactDelta":{},"requestedAuthConfigs":{},"requestedToolConfirmations":{"f-1":{"hint":"sure?","confirmed":false,"payload":{"n":1}}}},"nodeInfo":{"path":""},"longRunningToolIds":["f-1"],"id":"s-1-3","timestamp":1700000003.123456}');
INSERT INTO "events" VALUES(5,3,5,'s-1-4','adk_event',1,1700000001750000,1.7000000041234560013e+09,'agent','i-1',1,1,X'6F2AE302A6AD2D80EDA419E1C4B9FB6B7B5B17BB8B28C35E590FBEFC8A3ADDA5',X'5B039E973441FBFFCF9FFB4517F27D2E7C28EED7E380E5B3A62B4FA008DD30C4',X'7999F6645CC3CC2FA7460D67C90870C499BF1EAB7440822DF0C61E2959D114ED','{"user":{"tool":{"f":1}}}','{"content":{"parts":[{"functionResponse":{"id":"f-1","name":"f","response":{"result":{"n":1,"x":null}}}}],"role":"user"},"invocationId":"i-1","author":"agent","actions":{"skipSummarization":true,"artifactDelta":{"file.png":3},"transferToAgent":"helper","escalate":true,"requestedAuthConfigs":{},"requestedToolConfirmations":{}},"nodeInfo":{"path":""},"id":"s-1-4","timestamp":1700000004.123456}');
INSERT INTO "events" VALUES(6,3,6,'s-1-5','adk_event',1,1700000002000000,1.70000000512345600129e+09,'user','i-2',1,1,NULL,X'3FC01CCD111025CA3E84163BF5A0AB8529B33AEFB0F514E6513D8679B0CB33CE',X'3CFF40CDA7EB2D7599C27DA17DD3BD06B5807A8D38ACA9BDA77A4AD716652A2E',NULL,'{"content":{"parts":[{"inlineData":{"data":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0-P0BBQkNERUZHSElKS0xNTk9QUVJTVFVWV1hZWltcXV5fYGFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6e3x9fn-AgYKDhIWGh4iJiouMjY6PkJGSk5SVlpeYmZqbnJ2en6ChoqOkpaanqKmqq6ytrq-wsbKztLW2t7i5uru8vb6_wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX2Nna29zd3t_g4eLj5OXm5-jp6uvs7e7v8PHy8_T19vf4-fr7_P3-_w==","mimeType":"image/png"}},{"fileData":{"fileUri":"gs://a/b","mimeType":"text/plain"}}],"role":"user"},"invocationId":"i-2","author":"user","actions":{"artifactDelta":{},"requestedAuthConfigs":{},"requestedToolConfirmations":{}},"nodeInfo":{"path":""},"id":"s-1-5","timestamp":1700000005.123456}');
INSERT INTO "events" VALUES(7,3,7,'s-1-6','adk_event',1,1700000002249999,1.70000000612345600128e+09,'agent','i-2',1,1,NULL,X'CD60108D18690E3CF4D96B6826D0A29768E4BF72701CE819C105C1FA572E2179',X'C554A04B64D4D1F418776CB8E732194EE6AD8F61F659B410435CED49E443015C',NULL,'{"content":{"parts":[{"executableCode":{"code":"print(1)","language":"PYTHON"}},{"codeExecutionResult":{"outcome":"OUTCOME_OK","output":"1\n"}}],"role":"model"},"invocationId":"i-2","author":"agent","actions":{"artifactDelta":{},"requestedAuthConfigs":{},"requestedToolConfirmations":{}},"nodeInfo":{"path":""},"id":"s-1-6","timestamp":1700000006.123456}');
INSERT INTO "events" VALUES(8,3,8,'s-1-7','adk_event',1,1700000002500000,1.70000000712345600132e+09,'agent','i-2',1,1,NULL,X'0D670524CCB08E484DA11D7D357144544037E7CE8731C64034D3D2FF4C004B67',X'0E8D3B71FCC6846514AA77583A62A048D05E80D75B71AE25843AE4DD18BC5E44',NULL,'{"errorCode":"MAX_TOKENS","errorMessage":"it was too long","interrupted":true,"inputTranscription":{"text":"heard","finished":true},"outputTranscription":{"text":"spoken","finished":false},"invocationId":"i-2","author":"agent","actions":{"artifactDelta":{},"requestedAuthConfigs":{},"requestedToolConfirmations":{}},"nodeInfo":{"path":""},"id":"s-1-7","timestamp":1700000007.123456}');
INSERT INTO "events" VALUES(9,3,9,'s-1-8','adk_event',1,1700000002750000,1.70000000812345600123e+09,'agent','i-2',1,1,NULL,X'58541077DF45ECB48631DCDB2E0374961348370FD54CD19A390D84FD635BDE23',X'6253A985F000B09472F79F620826397398285E6AB977F71046580B462A7925E8',NULL,'{"invocationId":"i-2","author":"agent","actions":{"artifactDelta":{},"requestedAuthConfigs":{"f-2":{"authScheme":{"type":"apiKey","in":"header","name":"X-Key"},"credentialKey":"key"}},"requestedToolConfirmations":{}},"nodeInfo":{"path":""},"id":"s-1-8","timestamp":1700000008.123456}');
INSERT INTO "events" VALUES(10,3,10,'s-1-9','adk_event',1,1700000003000000,1.70000000912345600127e+09,'agent','i-2',1,2,X'06BF4E2D2357DC8AF8E0060D0E9E3EA9B9EE8A33718A72DA9AA31E090B98E9F5',X'3ECE0978A1A8CA0B3751F8D9838AEC500A2B54A9AB5C3EE6CC20026893EDD3E5',X'B671727667002AAA743973E27CDB7D9AA2EAEEECB01AFCA210D2901002AF62C9','{"session":{"numbers":[NaN,-Infinity,1.0],"half":"\ud800","plain":"\u00e9"},"app":{"nan":NaN}}','{"customMetadata":{"\u00e9":"\u00e8"},"invocationId":"i-2","author":"agent","actions":{"artifactDelta":{},"requestedAuthConfigs":{},"requestedToolConfirmations":{}},"nodeInfo":{"path":""},"id":"s-1-9","timestamp":1700000009.123456}');
INSERT INTO "events" VALUES(11,3,11,'s-1-10','adk_event',1,1700000003249999,1.70000001012345600126e+09,'user','i-3',1,1,NULL,X'290C3C71F8694DD6F1E9333C325213FCE617C700DF359FD57EEF3B59B16DFCB2',X'19D040B65195AB62E2F673719CE3415FD28324B848785C3A2A20C6E07D018ADC',NULL,'{"invocationId":"i-3","author":"user","actions":{"artifactDelta":{},"requestedAuthConfigs":{},"requestedToolConfirmations":{},"compaction":{"startTimestamp":1700000001.0,"endTimestamp":1700000003.5,"compactedContent":{"parts":[{"text":"a summary"}],"role":"model"}}},"nodeInfo":{"path":""},"id":"s-1-10","timestamp":1700000010.123456}');
INSERT INTO "events" VALUES(12,3,12,'s-1-11','adk_event',1,1700000003500000,1.70000001112345600125e+09,'agent','i-4',1,1,X'1B7F2E9A17CA1D88406FFC45F62DD3B4F6DB7925F65391D34CBB5774EC40316D',X'6D37CFA524190787B39DA55B538E66777DE5FEA068C43311E9199E442E0F47D6',X'46EF2196FA1354DFC8ED196807AFC0E273409ECCB74895E1A81F45FED8323DA9','{"session":{"k":4,"late":1}}','{"invocationId":"i-4","author":"agent","actions":{"artifactDelta":{},"requestedAuthConfigs":{},"requestedToolConfirmations":{}},"nodeInfo":{"path":""},"id":"s-1-11","timestamp":1700000011.123456}');
INSERT INTO "events" VALUES(13,3,13,'s-1-12','adk_event',1,1700000003750000,1.70000001212345600129e+09,'user','i-5',1,1,X'2FD690326ABB559D8DCF1532691696A7AD98A50D02946F671403236D31A01861',X'9BD1BD75F5D9B0DE849F144B56BC3EF643CD59418D4E3ADDD0990D6251B6F15B',X'B8BC8AB6DD389E95D49E32C67F7CDAE34E430D50E573F312F8A9558605066CCF','{"session":{"k":{"list":[1,2.5,null,true,"é"]},"late":null}}','{"invocationId":"i-5","author":"user","actions":{"artifactDelta":{},"requestedAuthConfigs":{},"requestedToolConfirmations":{},"rewindBeforeInvocationId":"i-4"},"nodeInfo":{"path":""},"id":"s-1-12","timestamp":1700000012.123456}');
INSERT INTO "events" VALUES(14,3,14,'00000000-0000-0000-0000-000000000020','state_set',1,1700000004124999,1700000003.875,'','',0,2,X'B68A84B36EFE63A3044BB0BF9053412134D16F06FD39F75912D58698726F10BB',NULL,X'CEF80A35B346A682BCF958BA75E7CA0283BF4D73115B2C680897C90EDF36565B','{"session":{"set":"\u00e9"},"user":{"set":1},"app":{"set":Infinity}}',NULL);
INSERT INTO "events" VALUES(19,1,1,'0000000000000000000000000000002d','state_set',1,1700000005875000,1700000005.75,'','',0,1,X'0C374727DB678612C0E6B96773844743B85AC71C4A62E6DDABAA79831B9F9316',X'EF71E5B6F635DB709C5916EAEE296BD05883AEFF4CD6A67C338A90AF7B479301',X'6D2C54641103058DB1B4D03688905A6C776BE21A27563FF99C4EDABDD6555762','{"app":{"left":[1,null]}}','{"stream":{"kind":"app","app_name":"golden","user_id":"","session_id":"","nonce":"00000000000000000000000000000003"}}');
INSERT INTO "events" VALUES(20,1,2,'00000000000000000000000000000030','state_set',1,1700000006249999,1700000006.125,'','',0,2,X'7F5C3A9F04BC50326E590FEA6109A85CC26975BC30DF949217397EBAF96E7F08',NULL,X'D78A6CA5625AA83CBE288DF0BDDF74505275D6C5A5F3C5BFAA573D7F8F45EB8A','{"app":{"odd":[NaN,"\ud800"]}}',NULL);
INSERT INTO "events" VALUES(21,2,1,'00000000000000000000000000000033','state_set',1,1700000006624999,1700000006.5,'','',0,1,X'1222F17234E2F103CD391B891F9DA8AD8E8A48C75EFCD86DADC6CE50106E3760',X'E09A7F35B66EA9913C96C29C7F356903C46AFE083ADC4E775C8AAEC97EA4B260',X'EEA3513BD5295C18B2DD935616FE85F5EFB824912F26A0275452D6A53182020B','{"user":{"left":"ü","also":1}}','{"stream":{"kind":"user","app_name":"golden","user_id":"user","session_id":"","nonce":"00000000000000000000000000000004"}}');
INSERT INTO "events" VALUES(22,5,1,'00000000000000000000000000000037','vacuumed',1,1700000007124999,1700000007.0,'','',0,1,NULL,X'BBF64BF6D0437D26A3BD9C10DC526D148096F4DD2F1DBEFEF45FBB202531D597',X'9CBA1282DB8C1F53905A41FD13ADE4587B17199A4F7E8BE4FCC736943A2C261A',NULL,'{"streams":[4],"sessions":1,"events":4,"keys_carried_over":4,"stream":{"kind":"system","app_name":"","user_id":"","session_id":"","nonce":"00000000000000000000000000000036"}}');
INSERT INTO "events" VALUES(23,6,1,'00000000-0000-0000-0000-00000000003b','session_created',1,1700000007624999,1700000007.25,'','',0,1,X'2C1030AA47157FF7F77B290F27ABFFA15D6A2014C30E0A53532DBD4A6D7E90CD',X'5AF02EF858528CD3096AF60A67BA244562F3D39E73404BE232903E806784686C',X'D0F34BE2ECD0DE9FB1AD3999D0495C864E0FBAB5B3E3D176B27A9F43556D5BE4','{"session":{"life":1}}','{"stream":{"kind":"session","app_name":"golden","user_id":"user","session_id":"s-3","nonce":"0000000000000000000000000000003c"}}');
INSERT INTO "events" VALUES(24,6,2,'s-3-1','adk_event',1,1700000007875000,1.70000000112345600123e+09,'user','',1,1,X'3FE339356C7557DA9A405DF336783A38339766108B42ECE13D7531AFA86ECD87',X'4CB0E1F7454A7A57F736AEE72019A2A5D5B598C8188742EB57939A53D84551F4',X'FD896661BFE5C549B290E64D6CA2C849B40CE10C10BC9CE881130D39A4E87ABF','{"user":{"life":1},"app":{"life-1":1},"session":{"own":1}}','{"content":{"parts":[{"text":"life 1"}],"role":"user"},"invocationId":"","author":"user","actions":{"artifactDelta":{},"requestedAuthConfigs":{},"requestedToolConfirmations":{}},"nodeInfo":{"path":""},"id":"s-3-1","timestamp":1700000001.123456}');
INSERT INTO "events" VALUES(25,6,3,'00000000-0000-0000-0000-000000000041','session_deleted',1,1700000008249999,1700000008.0,'','',0,1,NULL,NULL,X'425347E769F66FD7CDB835ABDE10CF6E2E92E42B8B66C8358E766502F92027B8',NULL,NULL);
INSERT INTO "events" VALUES(26,7,1,'00000000-0000-0000-0000-000000000044','session_created',1,1700000008750000,1700000008.375,'','',0,1,X'6FB74AD256787840728A38828B25DDAF6F3C1C53FB113BA5837C03DDF3C9B46B',X'1BDF630A80904B377DEC1E218BAF1CCD32CB48D056BE45B9B2649E9F51E59294',X'113F0A72E6CA756638D148B96342C4FF62F9729053629A2EDE4AE44F06C489ED','{"session":{"life":2}}','{"stream":{"kind":"session","app_name":"golden","user_id":"user","session_id":"s-3","nonce":"00000000000000000000000000000045"}}');
INSERT INTO "events" VALUES(27,7,2,'s-3-1','adk_event',1,1700000009000000,1.70000000112345600123e+09,'user','',1,1,X'54E416F2B3452311580D10A56803D1CE2D74AB5C8B655DB82202A0243043E956',X'69FF84BB6E83FDCE005C2DA730AE47936597C6FC61A0E8E032B2BDF000C2B820',X'09D580DE2C764E56A69ABDA16F08B6BC470CE9914EB39C38D7D01F3551D2F4CC','{"user":{"life":2},"app":{"life-2":2},"session":{"own":2}}','{"content":{"parts":[{"text":"life 2"}],"role":"user"},"invocationId":"","author":"user","actions":{"artifactDelta":{},"requestedAuthConfigs":{},"requestedToolConfirmations":{}},"nodeInfo":{"path":""},"id":"s-3-1","timestamp":1700000001.123456}');
INSERT INTO "events" VALUES(28,10,1,'00000000-0000-0000-0000-00000000004a','session_created',1,1700000009750000,1700000009.125,'','',0,1,X'C5B266A31E9EEC2C1C74933A12375A42D781C62FB77CB4795607AAE660513EE7',X'C399B24529BC7A9775526BA70F68142453F34B7BE3A671CC843D3155EC5B20C8',X'E3F0660CAF2A6A13E911878F08442D1D261E194252CA212E19A1B9B5A595CE5F','{"app":{"x":1},"user":{"x":2},"session":{"x":3}}','{"stream":{"kind":"session","app_name":"ключ \"1\"","user_id":"","session_id":"🜁","nonce":"0000000000000000000000000000004d"}}');
INSERT INTO "events" VALUES(29,10,2,'🜁-1','adk_event',1,1700000010000000,1.70000000112345600123e+09,'','',1,1,NULL,X'C3F14AAD6CCC2531FCBB91B14627744BC4B91744CB080816860E29935E24F199',X'98AD947D13B41984FBA2CEABF3084A47D4D174CB3D788C362B34B00B7DDB33BE',NULL,'{"invocationId":"","author":"","actions":{"artifactDelta":{},"requestedAuthConfigs":{},"requestedToolConfirmations":{}},"nodeInfo":{"path":""},"id":"🜁-1","timestamp":1700000001.123456}');
INSERT INTO "events" VALUES(30,13,1,'00000000-0000-0000-0000-000000000052','session_created',1,1700000010750000,1700000010.125,'','',0,1,NULL,X'E86B1C623FFA80351223F4A06B320A012A7475787FE47D233DC356BFEEF2B06E',X'6DAA6E7C898CEB4539A02843C0F858CDF27A11A83C30089BD830332E2CE4864C',NULL,'{"stream":{"kind":"session","app_name":"other","user_id":"user","session_id":"s-1","nonce":"00000000000000000000000000000055"}}');
CREATE TABLE maintenance (
  id     INTEGER PRIMARY KEY CHECK (id = 1),
  reason TEXT NOT NULL
) STRICT;
CREATE TABLE projections (
  name    TEXT    PRIMARY KEY,
  version INTEGER NOT NULL
) STRICT;
INSERT INTO "projections" VALUES('sessions',1);
INSERT INTO "projections" VALUES('state',1);
CREATE TABLE sessions (
  stream_id INTEGER NOT NULL,
  created_at REAL NOT NULL,
  last_update_time REAL NOT NULL,
  PRIMARY KEY (stream_id)
) STRICT, WITHOUT ROWID;
INSERT INTO "sessions" VALUES(3,1700000000.125,1700000003.875);
INSERT INTO "sessions" VALUES(7,1700000008.375,1.70000000112345600123e+09);
INSERT INTO "sessions" VALUES(10,1700000009.125,1.70000000112345600123e+09);
INSERT INTO "sessions" VALUES(13,1700000010.125,1700000010.125);
CREATE TABLE state (
  owner_id INTEGER NOT NULL,
  state_key TEXT NOT NULL,
  state_value TEXT NOT NULL,
  position INTEGER NOT NULL,
  PRIMARY KEY (owner_id, state_key)
) STRICT, WITHOUT ROWID;
INSERT INTO "state" VALUES(1,'a','{"deep":[null]}',1);
INSERT INTO "state" VALUES(1,'left','[1,null]',19);
INSERT INTO "state" VALUES(1,'life-1','1',24);
INSERT INTO "state" VALUES(1,'life-2','2',27);
INSERT INTO "state" VALUES(1,'nan','NaN',10);
INSERT INTO "state" VALUES(1,'odd','[NaN,"\ud800"]',20);
INSERT INTO "state" VALUES(1,'seen','["i-1"]',2);
INSERT INTO "state" VALUES(1,'set','Infinity',14);
INSERT INTO "state" VALUES(2,'also','1',21);
INSERT INTO "state" VALUES(2,'left','"ü"',21);
INSERT INTO "state" VALUES(2,'life','2',27);
INSERT INTO "state" VALUES(2,'name','"ünï"',2);
INSERT INTO "state" VALUES(2,'set','1',14);
INSERT INTO "state" VALUES(2,'tool','{"f":1}',5);
INSERT INTO "state" VALUES(3,'','"an empty key"',2);
INSERT INTO "state" VALUES(3,'big','1180591620717411303424',2);
INSERT INTO "state" VALUES(3,'first','1',1);
INSERT INTO "state" VALUES(3,'gone','null',2);
INSERT INTO "state" VALUES(3,'half','"\ud800"',10);
INSERT INTO "state" VALUES(3,'k','{"list":[1,2.5,null,true,"é"]}',13);
INSERT INTO "state" VALUES(3,'late','null',13);
INSERT INTO "state" VALUES(3,'numbers','[NaN,-Infinity,1.0]',10);
INSERT INTO "state" VALUES(3,'plain','"\u00e9"',10);
INSERT INTO "state" VALUES(3,'quo"ted','-0.0',2);
INSERT INTO "state" VALUES(3,'set','"\u00e9"',14);
INSERT INTO "state" VALUES(3,'tiny','5e-324',2);
INSERT INTO "state" VALUES(7,'life','2',26);
INSERT INTO "state" VALUES(7,'own','2',27);
INSERT INTO "state" VALUES(8,'x','1',28);
INSERT INTO "state" VALUES(9,'x','2',28);
INSERT INTO "state" VALUES(10,'x','3',28);
CREATE TABLE streams (
  id                   INTEGER PRIMARY KEY AUTOINCREMENT,
  kind                 TEXT    NOT NULL CHECK (kind IN ('session', 'user', 'app', 'system')),
  app_name             TEXT    NOT NULL,
  user_id              TEXT    NOT NULL,
  session_id           TEXT    NOT NULL,
  user_stream_id       INTEGER NOT NULL,
  app_stream_id        INTEGER NOT NULL,
  version              INTEGER NOT NULL,
  conversation_version INTEGER NOT NULL,
  live                 INTEGER NOT NULL CHECK (live IN (0, 1)),
  nonce                BLOB    NOT NULL,
  chain                BLOB    NOT NULL
) STRICT;
INSERT INTO "streams" VALUES(1,'app','golden','','',0,0,2,0,1,X'00000000000000000000000000000003',X'D78A6CA5625AA83CBE288DF0BDDF74505275D6C5A5F3C5BFAA573D7F8F45EB8A');
INSERT INTO "streams" VALUES(2,'user','golden','user','',0,1,1,0,1,X'00000000000000000000000000000004',X'EEA3513BD5295C18B2DD935616FE85F5EFB824912F26A0275452D6A53182020B');
INSERT INTO "streams" VALUES(3,'session','golden','user','s-1',2,1,14,13,1,X'00000000000000000000000000000005',X'CEF80A35B346A682BCF958BA75E7CA0283BF4D73115B2C680897C90EDF36565B');
INSERT INTO "streams" VALUES(4,'session','','','',2,1,4,3,0,X'',X'1F2584DE78E3F5E69DABE5A3CA00553B90347B527822CC630FE479429BFD7523');
INSERT INTO "streams" VALUES(5,'system','','','',0,0,1,0,1,X'00000000000000000000000000000036',X'9CBA1282DB8C1F53905A41FD13ADE4587B17199A4F7E8BE4FCC736943A2C261A');
INSERT INTO "streams" VALUES(6,'session','golden','user','s-3',2,1,3,2,0,X'0000000000000000000000000000003C',X'425347E769F66FD7CDB835ABDE10CF6E2E92E42B8B66C8358E766502F92027B8');
INSERT INTO "streams" VALUES(7,'session','golden','user','s-3',2,1,2,2,1,X'00000000000000000000000000000045',X'09D580DE2C764E56A69ABDA16F08B6BC470CE9914EB39C38D7D01F3551D2F4CC');
INSERT INTO "streams" VALUES(8,'app','ключ "1"','','',0,0,0,0,1,X'0000000000000000000000000000004B',X'088653288A0FDF339E06BA314DC5CF03D85A5C84B6750DA3B0A944768EA48CEE');
INSERT INTO "streams" VALUES(9,'user','ключ "1"','','',0,8,0,0,1,X'0000000000000000000000000000004C',X'76998006942C126E0A87581A077C77B6D3D963639EBAB13C38656F92FE38D2D7');
INSERT INTO "streams" VALUES(10,'session','ключ "1"','','🜁',9,8,2,2,1,X'0000000000000000000000000000004D',X'98AD947D13B41984FBA2CEABF3084A47D4D174CB3D788C362B34B00B7DDB33BE');
INSERT INTO "streams" VALUES(11,'app','other','','',0,0,0,0,1,X'00000000000000000000000000000053',X'A2B9EC398FA9E2447C798D8AAE1D3316F231423C9F1C3FF4D86EFFC06658DAD2');
INSERT INTO "streams" VALUES(12,'user','other','user','',0,11,0,0,1,X'00000000000000000000000000000054',X'CB5635CEDAA671F028CDE73A1D13F14E0E57EBD85B955756BE99687AB84BC426');
INSERT INTO "streams" VALUES(13,'session','other','user','s-1',12,11,1,1,1,X'00000000000000000000000000000055',X'6DAA6E7C898CEB4539A02843C0F858CDF27A11A83C30089BD830332E2CE4864C');
CREATE UNIQUE INDEX streams_live ON streams (app_name, kind, user_id, session_id) WHERE live = 1;
CREATE INDEX streams_deleted ON streams (id) WHERE live = 0 AND nonce <> x'';
CREATE TRIGGER events_no_update BEFORE UPDATE ON events
WHEN NOT EXISTS (SELECT 1 FROM maintenance)
BEGIN
  SELECT RAISE(ABORT, 'events are append-only: UPDATE refused');
END;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events
WHEN NOT EXISTS (SELECT 1 FROM maintenance)
BEGIN
  SELECT RAISE(ABORT, 'events are append-only: DELETE refused');
END;
CREATE TRIGGER events_no_replace BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM events WHERE stream_id = NEW.stream_id AND version = NEW.version)
  OR EXISTS (SELECT 1 FROM events WHERE stream_id = NEW.stream_id AND event_id = NEW.event_id)
  OR EXISTS (SELECT 1 FROM events WHERE position = NEW.position)
BEGIN
  SELECT RAISE(ABORT, 'events are append-only: this position, version or event id exists');
END;
CREATE VIEW adk_events AS
SELECT e.position AS id,
       s.app_name,
       s.user_id,
       s.session_id,
       e.version,
       e.type,
       e.author,
       e.invocation_id,
       coalesce(strftime('%Y-%m-%d %H:%M:%f', e.timestamp, 'unixepoch'), e.timestamp) AS timestamp,
       e.event_id,
       e.delta AS state_delta,
       e.data
FROM events AS e JOIN streams AS s ON s.id = e.stream_id;
CREATE VIEW adk_sessions AS
SELECT s.app_name,
       s.user_id,
       s.session_id,
       strftime('%Y-%m-%d %H:%M:%S', p.created_at, 'unixepoch') AS created,
       strftime('%Y-%m-%d %H:%M:%S', p.last_update_time, 'unixepoch') AS updated,
       p.last_update_time,
       s.version
FROM sessions AS p JOIN streams AS s ON s.id = p.stream_id;
CREATE VIEW adk_state AS
SELECT s.kind AS scope,
       s.app_name,
       CASE WHEN s.kind <> 'app' THEN s.user_id END AS user_id,
       CASE WHEN s.kind = 'session' THEN s.session_id END AS session_id,
       p.state_key,
       p.state_value,
       p.position AS event
FROM state AS p JOIN streams AS s ON s.id = p.owner_id;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('streams',13);
INSERT INTO "sqlite_sequence" VALUES('events',30);
COMMIT;
