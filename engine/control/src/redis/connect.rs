//! From settings to a connection: one server, the master that sentinels name, or a cluster.

use std::sync::Once;

use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, Value,
};
use ringway_config::snapshot::{Redis as Settings, RedisNode, RedisServers};
use tokio::time::timeout;

/// A connection that many calls share. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Conn {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// What one command was answered; an error is one that the server sent.
pub(crate) type Answer = RedisResult<Value>;

impl Conn {
    /// Connects and logs in.
    ///
    /// # Errors
    /// Also when that takes longer than `connect_timeout`.
    pub(crate) async fn open(settings: &Settings) -> RedisResult<Self> {
        match timeout(settings.connect_timeout, Self::try_open(settings)).await {
            Ok(opened) => opened,
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }

    async fn try_open(settings: &Settings) -> RedisResult<Self> {
        match &settings.servers {
            RedisServers::One { node, database } => open_one(settings, node, *database).await.map(Self::One),
            RedisServers::Sentinel { nodes, master, database } => {
                // All at once: one that does not answer must not hold the others up.
                let asked = nodes.iter().map(|sentinel| Box::pin(master_of(settings, sentinel, master)));
                let (node, _) = futures_util::future::select_ok(asked).await?;
                let mut connection = open_one(settings, &node, *database).await?;
                expect_master(&mut connection).await?;
                Ok(Self::One(connection))
            }
            RedisServers::Cluster { nodes } => {
                let nodes = nodes.iter().map(|node| info(settings, node, RedisConnectionInfo::default()));
                let mut builder = ClusterClientBuilder::new(nodes.collect::<RedisResult<Vec<_>>>()?)
                    .connection_timeout(settings.connect_timeout)
                    .response_timeout(settings.response_timeout)
                    .overall_response_timeout(Some(settings.response_timeout));
                if let Some(user) = &settings.user {
                    builder = builder.username(user);
                }
                if let Some(password) = &settings.password {
                    builder = builder.password(password);
                }
                if settings.tls.is_some() {
                    builder = builder.tls(redis::TlsMode::Secure).certs(certificates(settings));
                }
                builder.build()?.get_async_connection().await.map(Self::Cluster)
            }
        }
    }

    /// Sends the commands in one go and waits for all answers, which come in the same order. To a cluster each goes by
    /// itself, to the node of its key.
    ///
    /// # Errors
    /// When there are no answers: the connection is gone, or was silent for `response_timeout`.
    pub(crate) async fn call(&self, commands: &[Cmd]) -> RedisResult<Vec<Answer>> {
        match self {
            Self::One(connection) => {
                let mut pipeline = Pipeline::with_capacity(commands.len());
                pipeline.ignore_errors();
                for command in commands {
                    pipeline.add_command(command.clone());
                }
                let answers: Vec<Answer> = pipeline.query_async(&mut connection.clone()).await?;
                match answers.len() == commands.len() {
                    true => Ok(answers),
                    false => Err((ErrorKind::UnexpectedReturnType, "not as many answers as commands").into()),
                }
            }
            Self::Cluster(connection) => {
                let calls = commands.iter().map(|command| {
                    let mut connection = connection.clone();
                    async move { command.query_async::<Value>(&mut connection).await }
                });
                let mut answers = join_all(calls).await;
                match answers.iter().position(|answer| !answer.as_ref().is_err_and(is_lost)) {
                    // Some nodes answered: the connection to the others is the client's business.
                    Some(_) => Ok(answers),
                    None => answers.pop().unwrap_or(Ok(Value::Nil)).map(|_| Vec::new()),
                }
            }
        }
    }
}

/// Not the word of a server.
pub(super) fn is_lost(error: &RedisError) -> bool {
    !matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

async fn open_one(settings: &Settings, node: &RedisNode, database: u16) -> RedisResult<MultiplexedConnection> {
    let mut login = RedisConnectionInfo::default().set_db(database.into());
    if let Some(user) = &settings.user {
        login = login.set_username(user);
    }
    if let Some(password) = &settings.password {
        login = login.set_password(password);
    }
    open(settings, node, login).await
}

async fn open(settings: &Settings, node: &RedisNode, login: RedisConnectionInfo) -> RedisResult<MultiplexedConnection> {
    let info = info(settings, node, login)?;
    let client = match settings.tls {
        Some(_) => Client::build_with_tls(info, certificates(settings))?,
        None => Client::open(info)?,
    };
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(settings.connect_timeout))
        .set_response_timeout(Some(settings.response_timeout));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Asks one sentinel where the master is.
async fn master_of(settings: &Settings, sentinel: &RedisNode, master: &str) -> RedisResult<RedisNode> {
    let mut connection = open(settings, sentinel, RedisConnectionInfo::default()).await?;
    let mut command = redis::cmd("SENTINEL");
    command.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
    match command.query_async::<Option<(String, u16)>>(&mut connection).await? {
        Some((host, port)) => Ok(RedisNode { host: host.into(), port }),
        None => Err((ErrorKind::MasterNameNotFoundBySentinel, "no sentinel knows the master").into()),
    }
}

/// Right after a failover sentinels may still name the old master.
async fn expect_master(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    let role: Vec<Value> = redis::cmd("ROLE").query_async(connection).await?;
    match role.first() {
        Some(Value::BulkString(role)) if role == b"master" => Ok(()),
        _ => Err((ErrorKind::Client, "the server that the sentinels name is not a master yet").into()),
    }
}

fn info(settings: &Settings, node: &RedisNode, login: RedisConnectionInfo) -> RedisResult<ConnectionInfo> {
    let host = node.host.to_string();
    let address = match settings.tls {
        None => ConnectionAddr::Tcp(host, node.port),
        Some(_) => {
            use_one_provider();
            ConnectionAddr::TcpTls { host, port: node.port, insecure: false, tls_params: None }
        }
    };
    let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
    Ok(address.into_connection_info()?.set_redis_settings(login).set_tcp_settings(tcp))
}

fn certificates(settings: &Settings) -> TlsCertificates {
    let ca = settings.tls.as_ref().and_then(|tls| tls.ca.as_ref());
    TlsCertificates { client_tls: None, root_cert: ca.map(|ca| ca.to_vec()) }
}

/// The client asks rustls for the process' cryptography, which is that of aws-lc everywhere in the gateway.
fn use_one_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only where somebody has already chosen.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
}
